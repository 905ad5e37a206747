"""Times merges of models in device memory, and beside them a copy of one model."""

import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clinmerge_jax.llama.parameters import Parameter, Params, build_params
from clinmerge_jax.merging.engines.on_device import OnDeviceMerge
from clinmerge_jax.merging.recipes.recipe import Recipe
from clinmerge_jax.parallel.layout import Layout

_MULTIPLIER = 2654435761  # Knuth's multiplicative hash, 2^32 over the golden ratio: scatters neighbouring indices


def time_points(
    engine: OnDeviceMerge, model: Params, recipes: Mapping[str, Sequence[Recipe]], result: Params
) -> tuple[dict[str, float], Params]:
    """Times the recipes in rounds: first a copy of one model, then one recipe of each method.

    Args:
      engine: holds the source models.
      model: the model that is copied.
      recipes: by method, one recipe for each round.
      result: an earlier result, whose memory is reused.

    Returns:
      The median seconds of a merge by each method and of "copy", which reads and writes one model; the last result.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ("copy", *recipes)}
    for round_ in zip(*recipes.values(), strict=True):
        start = time.perf_counter()
        result = jax.block_until_ready(copy_params(model, result))
        seconds["copy"].append(time.perf_counter() - start)
        for name, recipe in zip(recipes, round_):
            start = time.perf_counter()
            result = jax.block_until_ready(engine.merge(recipe, into=result))
            seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(some)) for name, some in seconds.items()}, result


@functools.partial(jax.jit, donate_argnums=1, keep_unused=True)
def copy_params(params: Params, into: Params | None) -> Params:
    """A copy of the parameters, in the memory of `into` if that is given."""
    del into
    return jax.tree.map(jnp.copy, params)


@functools.partial(jax.jit, static_argnames="layout")
def random_params(layout: Layout, drift: Any) -> Params:
    """Pseudo-random bfloat16 parameters of both signs; models of different drift are siblings."""

    def leaf(row: Parameter) -> jax.Array:
        shape = layout.shape(row)
        index = jnp.zeros(shape, jnp.uint32)
        for axis, size in enumerate(shape):
            index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        noise = [_uniform(index * jnp.uint32(multiplier)) for multiplier in (_MULTIPLIER, _MULTIPLIER + 2)]
        values = jnp.float32(0.02) * (noise[0] + drift * noise[1])
        return layout.constrain(values.astype(jnp.bfloat16), *row.logical_axes())

    return build_params(layout.config, leaf)


def _uniform(bits: jax.Array) -> jax.Array:
    """Values from -1 to 1, made of the high 24 bits."""
    return (bits >> 8).astype(jnp.float32) / jnp.float32(1 << 23) - jnp.float32(1)
