"""Merges two models that lie in device memory, one value of t after another.

The floor is what reading two models and writing one takes at the bandwidth of a plain copy, which is measured in the
same repeat on the same devices, into memory that is there already, as the merge does.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from clinmerge_jax.benchmark import measure
from clinmerge_jax.benchmark.merge import check_methods
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.parameters import Parameter, Params, build_params, count_parameters
from clinmerge_jax.merging.on_device import OnDeviceMerge
from clinmerge_jax.merging.recipe import two_parents
from clinmerge_jax.parallel.layout import Layout, make_layout
from clinmerge_jax.parallel.mesh import MeshShape

_FLOOR = "three models at a copy's bandwidth"
_MULTIPLIER = 2654435761  # Knuth's, 2^32 over the golden ratio: neighbouring indices get unlike values


def run(config: ConfigDict) -> None:
    """Runs the benchmark; see configs/benchmark.py for its fields."""
    llama = LlamaConfig.from_json(config.model.to_dict(), "config.model")
    check_methods(config.methods, ("linear", "slerp"))
    measure.check_repeats(config.repeats)
    place = measure.place_with_space(config.output, 1e6)
    layout = make_layout(llama, MeshShape(**config.mesh))
    nbytes = 2 * count_parameters(llama)
    logging.info("making two models of %.1f GB on %s", nbytes / 1e9, dict(layout.mesh.shape))
    parents = [jax.block_until_ready(_random_params(layout, np.float32(drift))) for drift in (0.0, config.drift)]
    engine = OnDeviceMerge(layout, parents, ["first", "second"])
    measured: dict[str, list[dict[str, float]]] = {}
    start = time.perf_counter()
    engine.differences(two_parents("slerp", "first", "second", 0.5))
    first_statistics = time.perf_counter() - start
    result = jax.block_until_ready(_copy(parents[0], None))
    for repeat in range(config.repeats + 1):  # the first one compiles and is not counted
        points: dict[str, list[float]] = {}
        for t in np.linspace(0.1, 0.9, config.points):
            result, seconds = _timed(lambda result: _copy(parents[0], result), result)
            points.setdefault(_FLOOR, []).append(1.5 * seconds)
            for method in config.methods:
                recipe = two_parents(method, "first", "second", float(t))
                result, seconds = _timed(lambda result, recipe=recipe: engine.merge(recipe, into=result), result)
                points.setdefault(method, []).append(seconds)
        jobs = {name: float(np.median(seconds)) for name, seconds in points.items()}
        fresh = OnDeviceMerge(layout, parents, ["first", "second"])
        start = time.perf_counter()
        fresh.differences(two_parents("slerp", "first", "second", 0.5))
        jobs["slerp's statistics, once"] = time.perf_counter() - start
        for name, seconds in jobs.items() if repeat else ():
            measured.setdefault(name, []).append({"seconds": seconds})
            logging.info("repeat %d, %s: %.4f s", repeat, name, seconds)
    stats = jax.local_devices()[0].memory_stats() or {}
    facts = {"bytes": nbytes, "mesh": dict(layout.mesh.shape), "first_statistics_seconds": first_statistics}
    measure.record(place / "merge_on_device.json", measured, device_memory=stats, **facts)
    print(measure.ratios_table(measured, dict.fromkeys(measured, _FLOOR), "one point"))
    bandwidth = 3 * nbytes / np.median([run["seconds"] for run in measured[_FLOOR]]) / 1e9
    print(
        f"{config.repeats} repeats of {config.points} values of t; two models of {nbytes / 1e9:.2f} GB on"
        f" {layout.mesh.size} {jax.devices()[0].device_kind} devices; a copy reads and writes {bandwidth:.1f} GB/s."
        f" Statistics with their compilation, the first time: {first_statistics:.1f} s."
    )
    if "peak_bytes_in_use" in stats:
        print(f"Peak memory of the first device: {stats['peak_bytes_in_use'] / 1e9:.2f} GB.")
    print(f"\nThe figures of every run are in {place / 'merge_on_device.json'}.")


def _timed(function: Callable[[Params], Params], result: Params) -> tuple[Params, float]:
    start = time.perf_counter()
    result = jax.block_until_ready(function(result))
    return result, time.perf_counter() - start


@functools.partial(jax.jit, donate_argnums=1, keep_unused=True)
def _copy(params: Params, into: Params | None) -> Params:
    """The same values in other memory, that of `into` where it is given."""
    del into
    return jax.tree.map(jnp.copy, params)


@functools.partial(jax.jit, static_argnames="layout")
def _random_params(layout: Layout, drift: Any) -> Params:
    """bfloat16 values of both signs; those of another drift are siblings."""

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
    """-1 to 1 from the high bits."""
    return (bits >> 8).astype(jnp.float32) / jnp.float32(1 << 23) - jnp.float32(1)
