"""Systems that exist in memory alone: merges that no folder holds, and controls that tell a merge from luck.

A location such as `linear(INSTRUCT,CLINICAL,t=0.5)` names one. Its first model gives tokenizer, config and chat
template. The kinds:

* METHOD(INSTRUCT,CLINICAL[,BASE],PARAMETER=VALUE...): a merge by any method that the on-device engine supports, with
  the parameters of configs/merge.py, as numbers or per module ("self_attn=0.9; 0.1"), not as lists over depth. Two
  instruct models of different seeds, or parents of different bases, make a control.
* random_delta(INSTRUCT,CLINICAL[,BASE],t=0.5,seed=0): INSTRUCT plus t times a random change that has, tensor by tensor,
  the norm of CLINICAL - BASE, or of CLINICAL - INSTRUCT without BASE.
* either(A,B,t=0.5,seed=0): B answers each item with probability t, else A. Its score is the parents' mean, which a
  merge must beat to be more than one of its parents at a time.
* ensemble(A,B,t=0.5): both models run, and logits are mixed (1 - t and t). It costs twice the inference of a merge.

Models are locations without adapters, and no compositions themselves.
"""

import dataclasses
import math
import random
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from clinmerge_jax.checkpoint.folder import Checkpoint, open_checkpoint
from clinmerge_jax.checkpoint.parameters.params import llama_config, load_params
from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.parameters import Parameter, Params, build_params, iterate_params
from clinmerge_jax.merging.compatibility import check_compatible
from clinmerge_jax.merging.engines.on_device import OnDeviceMerge
from clinmerge_jax.merging.methods import METHODS
from clinmerge_jax.merging.plan import plan_merge
from clinmerge_jax.merging.recipes.recipe import Recipe, two_parents
from clinmerge_jax.parallel.layout import Layout

RANDOM_DELTA, ENSEMBLE, EITHER = "random_delta", "ensemble", "either"
_CALL = re.compile(r"(?P<kind>[a-z_]+)\((?P<arguments>.*)\)")
_ARGUMENT = re.compile(r"(?P<name>[a-z_]+)=(?P<value>.*)")
_MODELS = {
    RANDOM_DELTA: (2, 3),
    ENSEMBLE: (2, 2),
    EITHER: (2, 2),
}  # the fewest and the most; merges take two and a base


@dataclasses.dataclass(frozen=True, eq=False)
class Composition:
    """A system that is made of several models in memory.

    Attributes:
      kind: a merge method, `RANDOM_DELTA`, `ENSEMBLE` or `EITHER`.
      models: the models, the leading one first.
      recipe: the merge; None for the controls.
      t: the share of the second model, or the size of the random change.
      seed: the seed of the random change, or of the choice between models.
    """

    kind: str
    models: tuple[Checkpoint, ...]
    recipe: Recipe | None
    t: float = 0.5
    seed: int = 0

    @property
    def weights(self) -> tuple[float, ...]:
        """The weights of the models whose logits are mixed; (1.0,) for a single model."""
        return (1 - self.t, self.t) if self.kind == ENSEMBLE else (1.0,)

    def answerers(self, ids: Sequence[str]) -> list[int]:
        """Which of the separate models answers each item: 0 and 1 for `EITHER`, else 0; it depends on the id alone."""
        if self.kind != EITHER:
            return [0] * len(ids)
        return [int(random.Random(f"{self.seed}/{one}").random() < self.t) for one in ids]

    def describe(self) -> dict[str, Any]:
        """What identifies the composition beside its models."""
        recipe = None if self.recipe is None else self.recipe.renamed(_numbered(self.recipe.models)).to_json()
        return {"kind": self.kind, "recipe": recipe, "t": self.t, "seed": self.seed}

    def params(self, layout: Layout, dtype: Any) -> list[Params]:
        """Loads the models onto the mesh and composes them.

        Returns:
          One set of parameters for each of `weights`; for `EITHER` one for each model.

        Raises:
          BadInput: as `OnDeviceMerge.merge`.
        """
        stored = self.kind not in (ENSEMBLE, EITHER)
        loaded = [load_params(model, None if stored else dtype, mesh=layout.mesh)[1] for model in self.models]
        if not stored:
            return loaded
        if self.recipe is not None:
            origins = [str(model.path) for model in self.models]
            merged = OnDeviceMerge(layout, loaded, origins).merge(self.recipe)
        else:
            start, end = loaded[0], loaded[1]
            merged = random_delta(layout, start, end, loaded[-1] if len(loaded) > 2 else start, self.t, self.seed)
        return [jax.tree.map(lambda leaf: leaf.astype(dtype), merged)]


def is_composed(location: str) -> bool:
    """Whether a location is spelled like a composition, such as `slerp(A,B)`: one call from end to end."""
    return _CALL.fullmatch(location) is not None and all(
        location[:end].count("(") > location[:end].count(")") for end in range(location.index("(") + 1, len(location))
    )


def parse_composition(location: str, field: str) -> Composition:
    """Parses a location such as `linear(A,B,t=0.5)`.

    Raises:
      BadInput: the kind is unknown, the number of models is wrong, a parameter is unknown or malformed, or the models
        differ in what they must have in common.
    """
    call = _CALL.fullmatch(location)
    kind = call["kind"]
    if kind not in METHODS and kind not in _MODELS:
        known = ", ".join([*_MODELS, *METHODS])
        raise BadInput(f"{field}: {location}: {kind!r} is unknown; choose from {known}")
    locations, given = [], {}
    for part in split_outside_parentheses(call["arguments"]):
        named = _ARGUMENT.fullmatch(part)
        if named is None:
            locations.append(part)
        else:
            given[named["name"]] = named["value"]
    fewest, most = _MODELS.get(kind, (2, 3))
    if not fewest <= len(locations) <= most or not all(locations):
        wanted = "two models" if fewest == most else "two models, or three with the base"
        raise BadInput(f"{field}: {location}: names {len(locations)} models; give {wanted}")
    if len(set(locations)) < len(locations) and kind not in _MODELS:
        raise BadInput(f"{field}: {location}: names a model twice; give different models")
    models = tuple(dataclasses.replace(open_checkpoint(one, field), label=one) for one in locations)
    if kind in METHODS:
        recipe = _recipe(kind, locations, given, f"{field}: {location}")
        by_name = dict(zip(locations, models))
        models = tuple(by_name[name] for name in recipe.models)
        plan = plan_merge(recipe, models)
        if plan.in_files_alone:
            raise BadInput(f"{field}: {location}: cannot {plan.in_files_alone} in memory; merge into a folder first")
        return Composition(kind, models, recipe)
    for other in models[1:]:
        _refuse_different(models[0], other, f"{field}: {location}", same_config=kind != RANDOM_DELTA)
    allowed = {"t": float} if kind == ENSEMBLE else {"t": float, "seed": int}
    numbers = _numbers(given, allowed, f"{field}: {location}")
    if not 0 <= numbers.get("t", 0.5) <= (math.inf if kind == RANDOM_DELTA else 1):
        limit = "from 0 on" if kind == RANDOM_DELTA else "from 0 to 1"
        raise BadInput(f"{field}: {location}: t is {given['t']}; give a number {limit}")
    return Composition(kind, models, None, **numbers)


def _refuse_different(first: Checkpoint, other: Checkpoint, place: str, same_config: bool) -> None:
    """Refuses models of different shapes or tokens; with `same_config` also those that one config cannot run."""
    try:
        check_compatible(first, other)
    except BadInput as error:
        raise BadInput(f"{place}: {error}") from error
    one, two = llama_config(first), llama_config(other)
    differing = [
        part.name
        for part in dataclasses.fields(one)
        if part.name != "max_position_embeddings" and getattr(one, part.name) != getattr(two, part.name)
    ]
    if same_config and differing:
        raise BadInput(
            f"{place}: the models differ in {', '.join(differing)} in config.json; give models of one config"
        )


def split_outside_parentheses(text: str) -> list[str]:
    """Splits at the commas that stand outside parentheses."""
    parts, depth = [""], 0
    for character in text:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _recipe(method: str, locations: Sequence[str], given: Mapping[str, str], place: str) -> Recipe:
    parameters = dict(given)
    t, seed = parameters.pop("t", "0.5"), parameters.pop("seed", "0")
    if not seed.isdecimal():
        raise BadInput(f"{place}: seed is {seed!r}; give a whole number")
    base = locations[2] if len(locations) > 2 else ""
    try:
        recipe = two_parents(
            method, locations[0], locations[1], t, base=base, parameters=parameters, seed=int(seed),
            leading=locations[0],
        )  # fmt: skip
    except BadInput as error:
        raise BadInput(f"{place}: {error}") from error
    if base and not recipe.base:
        raise BadInput(f"{place}: {method} takes no base; leave it out")
    return recipe


def _numbers(given: Mapping[str, str], allowed: Mapping[str, type], place: str) -> dict[str, Any]:
    found = {}
    for name, value in given.items():
        if name not in allowed:
            raise BadInput(f"{place}: {name!r} is unknown; choose from {', '.join(allowed)}")
        try:
            found[name] = allowed[name](value)
        except ValueError as error:
            raise BadInput(f"{place}: {name} is {value!r}; give a number") from error
        if not math.isfinite(found[name]):
            raise BadInput(f"{place}: {name} is {value}; give a number")
    return found


def _numbered(models: Sequence[str]) -> dict[str, str]:
    """Names without locations: a folder that was moved is the same model."""
    return {model: f"model {index}" for index, model in enumerate(models)}


def random_delta(layout: Layout, start: Params, end: Params, base: Params, t: float, seed: int) -> Params:
    """`start` plus t times a random change with the norm of `end - base` in each tensor.

    The change is drawn from a normal distribution, entry by entry, and depends on the seed, the parameter's name and
    its shape alone. Norms and sums are in float32; the result has the dtypes of `start`.

    Args:
      layout: of all three.
      start, end, base: Params of equal shapes.
      t: the factor of the change.
      seed: seed of the change.
    """
    rows = list(zip(iterate_params(start, layout.config), iterate_params(end, layout.config),
                    iterate_params(base, layout.config)))  # fmt: skip

    def compose(leaves: Sequence[tuple[jax.Array, jax.Array, jax.Array]]) -> Params:
        made = {}
        for ((row, _), _, _), (first, last, origin) in zip(rows, leaves):
            key = jax.random.fold_in(jax.random.key(seed), zlib.crc32("/".join(row.path).encode()))
            noise = jax.random.normal(key, first.shape, jnp.float32)
            change = last.astype(jnp.float32) - origin.astype(jnp.float32)
            scale = _norm(change, row) / _norm(noise, row)
            made[row.path] = (first.astype(jnp.float32) + t * scale * noise).astype(first.dtype)
        return build_params(layout.config, lambda row: made[row.path])

    leaves = [tuple(leaf for _, leaf in aligned) for aligned in rows]
    return jax.jit(compose, out_shardings=layout.shardings())(leaves)


def _norm(x: jax.Array, row: Parameter) -> jax.Array:
    """The norm of each tensor; of each layer's own where layers are stacked."""
    axes = tuple(range(1 if row.stacked else 0, x.ndim))
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=True))
