"""Benchmarks merges of two models in device memory, one value of t after another.

The floor is reading two models and writing one at the bandwidth of a plain copy. The copy is measured in the same
repeat on the same devices and writes, as the merge does, into memory that is already allocated.
"""

import time

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from clinmerge_jax.benchmark.measuring import measure
from clinmerge_jax.benchmark.measuring.points import copy_params, random_params, time_points
from clinmerge_jax.benchmark.merge import check_methods
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.parameters import count_parameters
from clinmerge_jax.merging.engines.on_device import OnDeviceMerge
from clinmerge_jax.merging.recipes.recipe import two_parents
from clinmerge_jax.parallel.layout import make_layout
from clinmerge_jax.parallel.mesh import MeshShape

_FLOOR = "three models at a copy's bandwidth"


def run(config: ConfigDict) -> None:
    """Runs the benchmark; see configs/benchmark.py for its fields."""
    llama = LlamaConfig.from_json(config.model.to_dict(), "config.model")
    check_methods(config.methods, ("linear", "slerp"))
    measure.check_counts(config, "repeats")
    place = measure.place_with_space(config.output, 1e6)
    layout = make_layout(llama, MeshShape(**config.mesh))
    nbytes = 2 * count_parameters(llama)
    logging.info("making two models of %.1f GB on %s", nbytes / 1e9, dict(layout.mesh.shape))
    parents = [jax.block_until_ready(random_params(layout, np.float32(drift))) for drift in (0.0, config.drift)]
    engine = OnDeviceMerge(layout, parents, ["first", "second"])
    measured: dict[str, list[dict[str, float]]] = {}
    start = time.perf_counter()
    engine.differences(two_parents("slerp", "first", "second", 0.5))
    first_statistics = time.perf_counter() - start
    result = jax.block_until_ready(copy_params(parents[0], None))
    for repeat in range(config.repeats + 1):  # the first one compiles and is not counted
        recipes = {
            method: [two_parents(method, "first", "second", float(t)) for t in np.linspace(0.1, 0.9, config.points)]
            for method in config.methods
        }
        points, result = time_points(engine, parents[0], recipes, result)
        jobs = {_FLOOR: 1.5 * points.pop("copy"), **points}
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
