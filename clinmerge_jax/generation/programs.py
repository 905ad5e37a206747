"""The compiled programs of the decode engine, and the state of its slots.

Slot indices from S on and positions from T on mark padding: writes to them are dropped. Several models of one config
may run side by side, each with its own cache; their logits are mixed (`Models`).

M models, S slots, P prompts read together, C tokens of a chunk, T positions of the cache, D hidden, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from clinmerge_jax.generation.sampling import Kind, Sampling, Settings, choose
from clinmerge_jax.llama.attention import Backend, over_cache
from clinmerge_jax.llama.cache import Cache, empty_cache, extend, unstack
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.model import logits
from clinmerge_jax.llama.parameters import Params
from clinmerge_jax.parallel.layout import Layout


@functools.partial(jax.tree_util.register_dataclass, data_fields=["params", "weights"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Models:
    """The models that run side by side; usually one.

    Attributes:
      params: the parameters of each model, with separate layers.
      weights: [M] the weight of each model's logits.
    """

    params: tuple[Mapping[str, Any], ...]
    weights: jax.Array

    def extend(
        self, caches: tuple[Cache, ...], *args: Any, **named: Any
    ) -> tuple[tuple[jax.Array, ...], tuple[Cache, ...]]:
        """Runs `cache.extend` with each model on its cache; returns the outputs and the caches."""
        outputs, extended = zip(*(extend(one, cache, *args, **named) for one, cache in zip(self.params, caches)))
        return outputs, extended

    def logits(self, outputs: tuple[jax.Array, ...], config: LlamaConfig) -> jax.Array:
        """The mixed logits of the models' outputs, in float32."""
        each = [logits(one, output, config).astype(jnp.float32) for one, output in zip(self.params, outputs)]
        return each[0] if len(each) == 1 else sum(weight * one for weight, one in zip(self.weights, each))


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["caches", "tokens", "lengths", "produced", "limits", "live", "output", "seen", "settings"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class State:
    """The state of all slots.

    Attributes:
      caches: keys and values, of each model.
      tokens: [S] the last token of each slot; it is not in the cache yet.
      lengths: [S] the number of tokens in the cache.
      produced: [S] the number of tokens generated.
      limits: [S] the most tokens to generate.
      live: [S] whether the slot is generating.
      output: [S, T] the tokens generated.
      seen: [S, V] which tokens a row contains, for the repetition penalty; [S, 0] if no request has one.
      settings: the sampling settings.
    """

    caches: tuple[Cache, ...]
    tokens: jax.Array
    lengths: jax.Array
    produced: jax.Array
    limits: jax.Array
    live: jax.Array
    output: jax.Array
    seen: jax.Array
    settings: Settings


def blank_state(
    config: LlamaConfig,
    vocab_rows: int,
    slots: int,
    length: int,
    dtype: Any,
    kind: Kind,
    positions_last: bool = False,
    models: int = 1,
) -> State:
    """Makes the initial state on JAX's default device: every slot is free.

    Args:
      config: the model.
      vocab_rows: V, including padding.
      slots: S.
      length: T.
      dtype: the dtype of keys and values.
      kind: the kind of sampling; decides whether `seen` is stored.
      positions_last: as in `Cache`.
      models: M.
    """
    nothing = jnp.zeros(slots, jnp.int32)
    return State(
        caches=tuple(empty_cache(config, slots, length, dtype, positions_last) for _ in range(models)),
        tokens=nothing,
        lengths=nothing,
        produced=nothing,
        limits=nothing,
        live=jnp.zeros(slots, bool),
        output=jnp.zeros((slots, length), jnp.int32),
        seen=jnp.zeros((slots, vocab_rows if kind.penalties else 0), bool),
        settings=jax.tree.map(jnp.asarray, Settings.of([Sampling()] * slots)),
    )


def state_shardings(layout: Layout, dtype: Any, models: int = 1) -> State:
    """Shards keys and values over batch and key-value heads; replicates everything else.

    Args:
      layout: the layout of the models.
      dtype: the dtype of keys and values.
      models: M.
    """
    count, whole = layout.config.num_hidden_layers, layout.named()
    layers = (layout.named("batch", "kv_heads", None, None),) * count
    scales = (layout.named("batch", "kv_heads", None),) * count if jnp.dtype(dtype) == jnp.int8 else ()
    settings = Settings(**{field.name: whole for field in dataclasses.fields(Settings)})
    others = {field.name: whole for field in dataclasses.fields(State)}
    caches = (Cache(layers, layers, scales, scales, _positions_last(layout)),) * models
    return State(**{**others, "caches": caches, "settings": settings})


def _positions_last(layout: Layout) -> bool:
    """Whether the cache has its position axis last. On CPUs that makes small-batch attention up to twice as fast."""
    return layout.device.platform == "cpu"


def empty_state(layout: Layout, slots: int, length: int, dtype: Any, kind: Kind, models: int = 1) -> State:
    """Makes the initial state on the devices of a layout; arguments as in `blank_state`."""
    return _maker(layout, slots, length, jnp.dtype(dtype), kind, models)()


@functools.lru_cache(maxsize=32)
def _maker(layout: Layout, slots: int, length: int, dtype: jnp.dtype, kind: Kind, models: int) -> Callable[[], State]:
    last = _positions_last(layout)
    make = functools.partial(blank_state, layout.config, layout.vocab_rows, slots, length, dtype, kind, last, models)
    return jax.jit(make, out_shardings=state_shardings(layout, dtype, models))


@functools.lru_cache(maxsize=32)
def unstacker(layout: Layout, quantized: bool = False) -> Callable[[Params], Params]:
    """Returns the compiled `cache.unstack` for the devices of a layout; models of one shape share it."""
    unstack_one = functools.partial(unstack, config=layout.config, quantized=quantized)
    return jax.jit(unstack_one, out_shardings=unstacked(layout, quantized))


def unstacked(layout: Layout, quantized: bool = False) -> dict[str, Any]:
    """Returns the shardings of parameters with separate layers, as `cache.unstack` returns them."""
    abstract = jax.eval_shape(lambda params: unstack(params, layout.config, quantized), layout.abstract_params())
    stacked = layout.shardings()

    def one(path: tuple, _: Any) -> NamedSharding:
        keys = [getattr(part, "key", None) for part in path]
        if keys[0] != "layers":
            return functools.reduce(lambda tree, key: tree[key], keys, stacked)
        *module, leaf = keys[2:]  # after "layers" and the layer's number
        whole = functools.reduce(
            lambda tree, key: tree[key], [*module, "weight" if leaf == "scale" else leaf], stacked["layers"]
        )
        axes = whole.spec[1:2] if leaf == "scale" else whole.spec[1:]
        return NamedSharding(whole.mesh, jax.P(*axes))

    return jax.tree_util.tree_map_with_path(one, abstract)


@functools.partial(jax.jit, static_argnames=("layout", "fresh", "whole"), donate_argnums=1)
def read_chunk(
    models: Models,
    caches: tuple[Cache, ...],
    last_MPD: tuple[jax.Array, ...],
    slots_P: jax.Array,
    tokens_PC: jax.Array,
    positions_PC: jax.Array,
    ends_P: jax.Array,
    *,
    layout: Layout,
    fresh: bool = False,
    whole: bool = False,
) -> tuple[tuple[Cache, ...], tuple[jax.Array, ...]]:
    """Reads one chunk of some prompts into their slots.

    With `fresh` the prompts begin with this chunk (see `cache.extend`). With `whole` P is S, row i goes to slot i and
    `slots_P` is not used: the cache is extended in place, without copying rows out and back.

    Returns:
      The caches; and `last_MPD`, with each model's last output for those rows whose position `ends_P` is in this chunk.
    """
    rows = caches if whole else jax.tree.map(lambda x: x.at[slots_P].get(mode="clip"), caches)
    ended_PC = positions_PC == ends_P[:, None]
    x_MP1D, rows = models.extend(
        rows, tokens_PC, positions_PC, layout.config, layout.constrain,
        fresh=fresh, asked_B=jnp.argmax(ended_PC, axis=1),
    )  # fmt: skip
    caches = rows if whole else jax.tree.map(lambda x, row: x.at[slots_P].set(row, mode="drop"), caches, rows)
    ended_P1 = ended_PC.any(axis=1)[:, None]
    return caches, tuple(jnp.where(ended_P1, x_P1D[:, 0], last) for x_P1D, last in zip(x_MP1D, last_MPD))


@functools.partial(jax.jit, static_argnames=("layout", "kind"), donate_argnums=1)
def begin(
    models: Models,
    state: State,
    last_MPD: tuple[jax.Array, ...],
    slots_P: jax.Array,
    lengths_P: jax.Array,
    limits_P: jax.Array,
    seen_PV: jax.Array,
    settings: Settings,
    stop_ids: jax.Array,
    *,
    layout: Layout,
    kind: Kind,
) -> State:
    """Chooses the first token of the answers to prefilled prompts, and marks their slots as live."""
    logits_PV = layout.constrain(models.logits(last_MPD, layout.config), None, None)
    first_P = choose(logits_PV, settings, seen_PV, lengths_P, kind)
    if kind.penalties:
        seen_PV = seen_PV.at[jnp.arange(len(first_P)), first_P].set(True)
    ended_P = (first_P[:, None] == stop_ids).any(axis=1) | (limits_P <= 1)

    def put(x: jax.Array, value: jax.Array) -> jax.Array:
        return x.at[slots_P].set(value.astype(x.dtype), mode="drop")

    return State(
        caches=state.caches,
        tokens=put(state.tokens, first_P),
        lengths=put(state.lengths, lengths_P),
        produced=put(state.produced, jnp.ones_like(lengths_P)),
        limits=put(state.limits, limits_P),
        live=put(state.live, ~ended_P),
        output=state.output.at[slots_P, 0].set(first_P, mode="drop"),
        seen=put(state.seen, seen_PV),
        settings=jax.tree.map(put, state.settings, settings),
    )


@functools.partial(jax.jit, static_argnames=("layout", "kind", "attention"), donate_argnums=1)
def decode(
    models: Models,
    state: State,
    stop_ids: jax.Array,
    most_steps: jax.Array,
    until_live: jax.Array,
    *,
    layout: Layout,
    kind: Kind,
    attention: Backend = Backend.REFERENCE,
) -> tuple[State, jax.Array]:
    """Decodes for `most_steps` steps or until at most `until_live` slots are live; also returns the number of steps."""
    rows_S = jnp.arange(state.tokens.shape[0])
    attend = over_cache(attention, layout.map_shards)

    def go_on(carry: tuple[State, jax.Array]) -> jax.Array:
        state, step = carry
        return (step < most_steps) & (jnp.sum(state.live, dtype=jnp.int32) > until_live)

    def step(carry: tuple[State, jax.Array]) -> tuple[State, jax.Array]:
        state, step = carry
        nowhere = state.caches[0].length
        positions_S = jnp.where(state.live, state.lengths, nowhere)
        x_MS1D, caches = models.extend(
            state.caches, state.tokens[:, None], positions_S[:, None], layout.config, layout.constrain, attend
        )
        logits_SV = layout.constrain(models.logits(tuple(x_S1D[:, 0] for x_S1D in x_MS1D), layout.config), None, None)
        chosen_S = choose(logits_SV, state.settings, state.seen, state.lengths + 1, kind)
        chosen_S = jnp.where(state.live, chosen_S, state.tokens)
        output = state.output.at[rows_S, jnp.where(state.live, state.produced, nowhere)].set(chosen_S, mode="drop")
        seen = state.seen.at[rows_S, chosen_S].set(True) if kind.penalties else state.seen
        one = state.live.astype(jnp.int32)
        produced, lengths = state.produced + one, state.lengths + one
        ended_S = (chosen_S[:, None] == stop_ids).any(axis=1) | (produced >= state.limits)
        after = dataclasses.replace(
            state,
            caches=caches,
            tokens=chosen_S,
            lengths=lengths,
            produced=produced,
            live=state.live & ~ended_S,
            output=output,
            seen=seen,
        )
        return after, step + 1

    return jax.lax.while_loop(go_on, step, (state, jnp.int32(0)))


@functools.partial(jax.jit, donate_argnums=0)
def end(state: State, ended_S: jax.Array) -> State:
    """Ends the answers of the slots in `ended_S`."""
    return dataclasses.replace(state, live=state.live & ~ended_S)


@jax.jit
def row_of(caches: tuple[Cache, ...], slot: jax.Array) -> tuple[Cache, ...]:
    """Returns one slot of the caches, arrays of [G, T, H] or [G, H, T]."""
    return jax.tree.map(lambda x: x[slot], caches)


@functools.partial(jax.jit, donate_argnums=0)
def spread(caches: tuple[Cache, ...], row: tuple[Cache, ...], slots_P: jax.Array) -> tuple[Cache, ...]:
    """Copies one row into some slots of the caches."""
    return jax.tree.map(lambda x, one: x.at[slots_P].set(one[None], mode="drop"), caches, row)


@functools.partial(jax.jit, static_argnames="layout")
def continuations(
    models: Models,
    caches: tuple[Cache, ...],
    slots_P: jax.Array,
    tokens_PC: jax.Array,
    positions_PC: jax.Array,
    targets_PC: jax.Array,
    *,
    layout: Layout,
) -> tuple[jax.Array, jax.Array]:
    """Returns every target's log-probability after its token, [P, C], and whether it is the most likely one."""
    rows = jax.tree.map(lambda x: x.at[slots_P].get(mode="clip"), caches)
    x_MPCD, _ = models.extend(rows, tokens_PC, positions_PC, layout.config, layout.constrain)
    logits_PCV = models.logits(x_MPCD, layout.config)
    log_PCV = jax.nn.log_softmax(logits_PCV, axis=-1)
    return (
        layout.constrain(jnp.take_along_axis(log_PCV, targets_PC[..., None], axis=-1)[..., 0], None, None),
        layout.constrain(jnp.argmax(logits_PCV, axis=-1) == targets_PC, None, None),
    )
