"""One device and eight take the same step; what each device holds."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from support import LLAMA_3_1_8B, LLAMA_3_1_70B, tiny_config
from training_batches import draw_documents, make_batch, take_step

from clinmerge_jax.llama.lora import LoraSettings
from clinmerge_jax.llama.parameters import build_params, init_params, iterate_params
from clinmerge_jax.parallel.layout import Layout
from clinmerge_jax.parallel.mesh import MeshShape, build_mesh
from clinmerge_jax.training.ahead_of_time import abstract_state, lower_step
from clinmerge_jax.training.lora import init_adapter
from clinmerge_jax.training.optimizer import OptimizerSettings, adamw
from clinmerge_jax.training.sharding import state_shardings
from clinmerge_jax.training.step import StepSettings, init_state

CONFIG = tiny_config(  # a tensor axis pads the vocabulary to 32 rows
    vocab_size=31, num_attention_heads=4, num_key_value_heads=4, head_dim=4, initializer_range=0.2
)
FULL = StepSettings(OptimizerSettings(1e-2, clip_norm=0.5), 10, dtype=jnp.float32, chunk=8)
LORA = dataclasses.replace(FULL, lora=LoraSettings(2, 4.0, dropout=0.5, targets=("q_proj", "down_proj")))
# In float32 the order of the sums alone makes a difference of 1e-6.
SETTINGS = {kind: dataclasses.replace(one, dtype=jnp.float64) for kind, one in (("full", FULL), ("lora", LORA))}
CASES = [
    pytest.param(kind, shape, marks=pytest.mark.slow if slow else (), id=f"{kind}-{shape}")
    for kind, shape, slow in (
        ("full", MeshShape(2, 2, 2), False),
        ("full", MeshShape(8, 1, 1), True),
        ("full", MeshShape(1, 2, 4), True),
        ("lora", MeshShape(2, 2, 2), True),
    )
]

take = functools.partial(take_step, config=CONFIG)


def start(kind):
    """The trained and the frozen leaves, in float64."""
    params = init_params(CONFIG, jax.random.key(0, impl="rbg"), jnp.float64)
    if kind == "full":
        return params, {}
    adapter = init_adapter(CONFIG, LORA.lora, jax.random.key(1))
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float64) + 0.05, adapter), params


def spread(params, layout):
    """Params over the mesh, with the vocabulary's padding."""
    leaves = {row.path: leaf for row, leaf in iterate_params(params, CONFIG)}

    def place(row):
        leaf = np.asarray(leaves[row.path])
        more = [(0, size - present) for size, present in zip(layout.shape(row), leaf.shape)]
        return layout.put(np.pad(leaf, more), *row.logical_axes())

    return build_params(CONFIG, place)


def gradients(state):
    """After one step from nothing: the first moment is a tenth of them."""
    return jax.tree.map(lambda leaf: np.asarray(leaf) * 10, optax.tree.get(state.opt_state, "mu"))


@pytest.fixture(scope="module")
def batch():
    documents = draw_documents(16, CONFIG.vocab_size, 6)
    return make_batch([documents[index : index + 2] for index in range(0, 16, 2)], 12, (1, 8))


@pytest.fixture(scope="module")
def on_one(batch):
    @functools.cache
    def run(kind):
        trained, frozen = start(kind)
        return take(init_state(trained, SETTINGS[kind]), frozen, batch, settings=SETTINGS[kind])

    return run


@pytest.mark.parametrize("kind, shape", CASES)
@jax.enable_x64(True)
def test_eight_devices_take_the_step_of_one(kind, shape, batch, on_one, figures):
    settings, layout = SETTINGS[kind], Layout(build_mesh(shape), CONFIG)
    trained, frozen = start(kind)
    trained, frozen = (spread(trained, layout), {}) if kind == "full" else (trained, spread(frozen, layout))
    state = init_state(trained, settings)
    state = jax.device_put(state, state_shardings(state, adamw(settings.optimizer), layout))
    rows = jax.tree.map(lambda values: layout.put(values, None, "batch", None), batch)
    after, metrics = take(state, frozen, rows, settings=settings, layout=layout)
    theirs, expected = on_one(kind)
    np.testing.assert_allclose(metrics.loss, expected.loss, rtol=1e-12)
    np.testing.assert_allclose(metrics.rows.cross_entropy, expected.rows.cross_entropy, rtol=1e-12)
    worst = 0.0
    for ours, plain in zip(jax.tree.leaves(gradients(after)), jax.tree.leaves(gradients(theirs)), strict=True):
        same = ours[tuple(slice(size) for size in plain.shape)]
        worst = max(worst, np.abs(same - plain).max() / np.abs(plain).max())
        assert not np.any(ours[plain.shape[0] :])  # of the padding
    figures.append(f"training on {shape}, {kind}: gradients within {worst:.1e} of one device's, relative, in float64")
    assert worst < 1e-12
    for before, now in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert now.sharding.is_equivalent_to(before.sharding, now.ndim)


def test_moments_lie_as_their_weights_and_factors_as_the_weights_they_change():
    layout = Layout(build_mesh(MeshShape(1, 4, 2)), LLAMA_3_1_8B)
    state, frozen = abstract_state(layout, FULL)
    assert frozen == {}
    held = sum(np.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    whole = sum(leaf.size * 12 for leaf in jax.tree.leaves(state.trained))
    assert whole / 8 <= held < 1.001 * whole / 8
    state, frozen = abstract_state(layout, LORA)
    assert {leaf.dtype for leaf in jax.tree.leaves(frozen)} == {jnp.dtype(jnp.float32)}
    for tree in (state.trained, optax.tree.get(state.opt_state, "nu")):
        factors = {
            module: {name: leaf.sharding.spec for name, leaf in tree["layers"][part][module].items()}
            for part, module in (("self_attn", "q_proj"), ("mlp", "down_proj"))
        }
        assert factors == {
            "q_proj": {"lora_a": PartitionSpec(None, None, "fsdp"), "lora_b": PartitionSpec(None, "tensor", None)},
            "down_proj": {"lora_a": PartitionSpec(None, None, "tensor"), "lora_b": PartitionSpec(None, "fsdp", None)},
        }


def test_a_step_of_any_size_is_lowered_without_an_array():
    layout = Layout(build_mesh(MeshShape(1, 2, 4)), LLAMA_3_1_70B)
    settings = dataclasses.replace(FULL, kl=0.1, l2=0.1)
    state, metrics = lower_step(layout, settings, (2, 4, 128), ["embed_tokens", "norm"]).out_info
    assert set(state.trained) == {"layers", "lm_head"}
    assert state.trained["layers"]["mlp"]["up_proj"]["weight"].shape == (80, 28672, 8192)
    assert metrics.rows.divergence.shape == (2, 4) and metrics.loss.dtype == jnp.float32
