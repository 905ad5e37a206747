"""Times merges of models in device memory against the bandwidth of a copy."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from clinmerge_jax.benchmark.gpu_check.record import Reporter
from clinmerge_jax.benchmark.measuring.device import peak_bytes
from clinmerge_jax.benchmark.measuring.points import copy_params, random_params, time_points
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.parameters import Params, count_parameters
from clinmerge_jax.merging.engines.on_device import OnDeviceMerge
from clinmerge_jax.merging.recipes.recipe import two_parents
from clinmerge_jax.parallel.layout import Layout, one_device

_DRIFTS = (0.0, 0.03, 0.05)  # of the models; models of different drift are siblings
_NAMES = ("first", "second", "base")
_COPY_MOVES = 2  # models that a copy moves: one read, one written


def measure(settings: Mapping[str, Any], report: Reporter) -> None:
    """Times linear and slerp of two models, then ties of two and a base; see `parts.PARTS` for the settings."""
    llama = LlamaConfig.from_json(settings["model"], "model")
    _linear_and_slerp(one_device(llama), settings, report)
    few = LlamaConfig.from_json({**settings["model"], "num_hidden_layers": settings["ties_layers"]}, "model")
    _ties(one_device(few), settings, report)


def _linear_and_slerp(layout: Layout, settings: Mapping[str, Any], report: Reporter) -> None:
    nbytes = 2 * count_parameters(layout.config)
    parents = _models(layout, 2)
    engine = OnDeviceMerge(layout, parents, _NAMES[:2])
    weights = np.linspace(0.1, 0.9, settings["points"])
    recipes = {
        method: [two_parents(method, "first", "second", float(t)) for t in weights] for method in ("linear", "slerp")
    }
    start = time.perf_counter()
    engine.differences(recipes["slerp"][0])
    compiled = time.perf_counter() - start
    result = copy_params(parents[0], None)
    runs: list[dict[str, float]] = []
    for repeat in range(settings["repeats"] + 1):  # the first one compiles
        points, result = time_points(engine, parents[0], recipes, result)
        runs += [points] if repeat else []
        if runs:
            _report_points(runs, nbytes, 3, report)
    seconds = []
    for _ in range(settings["repeats"]):
        fresh = OnDeviceMerge(layout, parents, _NAMES[:2])
        start = time.perf_counter()
        fresh.differences(recipes["slerp"][0])
        seconds.append(time.perf_counter() - start)
    report.add("slerp's statistics, once for all t", seconds, "s", first_seconds=compiled, peak_bytes=peak_bytes())


def _ties(layout: Layout, settings: Mapping[str, Any], report: Reporter) -> None:
    """Times ties on fewer layers: most of its time is counting magnitudes, which is proportional to the entries."""
    nbytes = 2 * count_parameters(layout.config)
    models = _models(layout, 3)
    recipe = two_parents("ties", "first", "second", 0.5, base="base", parameters={"density": 0.5})
    engine = OnDeviceMerge(layout, models, _NAMES)
    result = copy_params(models[0], None)
    runs: list[dict[str, float]] = []
    for repeat in range(settings["ties_repeats"] + 1):
        points, result = time_points(engine, models[0], {"ties": [recipe]}, result)
        runs += [points] if repeat else []
        if runs:
            _report_points(runs, nbytes, 4, report)


def _models(layout: Layout, count: int) -> list[Params]:
    return [jax.block_until_ready(random_params(layout, np.float32(drift))) for drift in _DRIFTS[:count]]


def _report_points(runs: Sequence[Mapping[str, float]], nbytes: int, moved: int, report: Reporter) -> None:
    """Reports the figures of the runs so far.

    Args:
      runs: from `time_points`.
      nbytes: size of one model.
      moved: number of models that a merge reads and writes.
      report: takes the figures.
    """
    size = f"{nbytes / 1e9:.2f} GB a model"
    memory = {"peak_bytes": peak_bytes()}
    copies = [run["copy"] for run in runs]
    report.add(f"copy, {size}", [_COPY_MOVES * nbytes / one / 1e9 for one in copies], "GB/s", **memory)
    for method in (name for name in runs[0] if name != "copy"):
        seconds = [run[method] for run in runs]
        shares = [moved / _COPY_MOVES * copy / one for copy, one in zip(copies, seconds)]
        report.add(
            f"{method}, {size}",
            [1e3 * one for one in seconds],
            "ms",
            ratios=shares,
            ratio_of=f"of a copy's bandwidth ({moved} models moved)",
            **memory,
        )
