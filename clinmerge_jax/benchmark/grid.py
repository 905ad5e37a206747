"""Benchmarks many fine-tuning runs (seeds x numbers of examples): as one grid, and with a launch for each run.

The grid and each launch are whole processes: they read the model, compile, train, and write a checkpoint for each run.
Of the launches only a sample is measured, the first seeds of each number of examples; the others are assumed to take as
long. The warm rows train the same runs both ways in this process, with everything compiled, and write nothing.
"""

import dataclasses
import os
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from clinmerge_jax.benchmark.measuring import measure
from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.parameters.params import load_params
from clinmerge_jax.checkpoint.tokenizers.tokenizer import load_tokenizer
from clinmerge_jax.data.examples import prepare, read
from clinmerge_jax.data.few_shot import choose
from clinmerge_jax.data.loader import steps_of
from clinmerge_jax.errors import BadInput
from clinmerge_jax.training.batching import Batching
from clinmerge_jax.training.grid import Grid, Member, pick_slots, replicas
from clinmerge_jax.training.loop import LoopSettings, train
from clinmerge_jax.training.optimizer import OptimizerSettings
from clinmerge_jax.training.run import Run
from clinmerge_jax.training.step import StepSettings

_ROOT = pathlib.Path(__file__).parents[2]
_GRID, _LAUNCHES = "one grid, one launch", "a launch for each run"
_WARM_GRID, _WARM_RUNS = "warm: one grid", "warm: one run after another"


def run(config: ConfigDict) -> None:
    """Runs the benchmark; see configs/benchmark.py for its fields."""
    measure.check_counts(config, "repeats")
    if not 1 <= config.launched <= len(config.seeds):
        raise BadInput(f"config.launched: is {config.launched}; give 1 to {len(config.seeds)}, the number of seeds")
    grid, members = _members(config)
    place = measure.place_with_space(config.output, 1e9)
    measured: dict[str, list[dict[str, float]]] = {}
    loads = []
    scale = len(config.seeds) / config.launched
    with tempfile.TemporaryDirectory(prefix="grid-", dir=place) as temporary:
        work = pathlib.Path(temporary)
        for repeat in range(config.repeats):
            loads.append(os.getloadavg()[0])
            whole = measure.watch(_grid_command(config, work / "grid"))
            shutil.rmtree(work / "grid")
            launches = []
            for shots in config.shots:
                for seed in config.seeds[: config.launched]:
                    launches.append(measure.watch(_single_command(config, shots, seed, work / "single")))
                    shutil.rmtree(work / "single")
            found = {
                _GRID: whole,
                _LAUNCHES: {
                    "seconds": scale * sum(launch["seconds"] for launch in launches),
                    "peak_bytes": max(launch["peak_bytes"] for launch in launches),
                },
                **_warm(config, grid, members),
            }
            for name, record in found.items():
                measured.setdefault(name, []).append(record)
                logging.info("repeat %d, %s: %s", repeat + 1, name, record)
    runs, steps = len(members), sum(member.steps for member in members)
    measure.record(place / "grid.json", measured, load_before=loads, runs=runs, steps=steps, launched=len(launches))
    floors = {_GRID: _GRID, _LAUNCHES: _GRID, _WARM_GRID: _WARM_GRID, _WARM_RUNS: _WARM_GRID}
    print(measure.ratios_table(measured, floors, f"{runs} runs"))
    before = ", ".join(f"{load:.1f}" for load in loads)
    print(
        f"{config.repeats} repeats, {os.cpu_count()} cores, load before each {before}. Over the floor: over the grid."
        f" {steps} steps of {config.batch_size} rows of {config.length} tokens in all, {grid.slots} runs at a time. Of"
        f" {runs} launches {len(launches)} were measured, {config.launched} for each number of examples, and their"
        f" seconds multiplied by {scale:g}. Warm: in one process, compiled before, without reading or writing."
    )
    print(f"\nThe figures of every run are in {place / 'grid.json'}.")


def _members(config: ConfigDict) -> tuple[Grid, list[Member]]:
    """The grid and its runs, as the job sets them up."""
    checkpoint = open_checkpoint(config.model, "config.model")
    layout = replicas(load_params(checkpoint)[0])
    tokenizer = load_tokenizer(checkpoint.path, "config.model")
    documents = read(config.task, "config.task")
    members = []
    for shots in config.shots:
        for seed in config.seeds:
            examples = prepare(
                choose(documents, shots, seed), tokenizer, layout.config.vocab_size, config.length,
                chat=True, full_rows=True, field="config.model",
            )  # fmt: skip
            steps = steps_of(len(examples.sequences), config.batch_size, config.epochs)
            members.append(Member(f"shots-{shots}/seed-{seed}", examples.sequences, steps, seed, config.learning_rate))
    dtype = jnp.float32 if layout.device.platform == "cpu" else jnp.bfloat16
    settings = StepSettings(OptimizerSettings(config.learning_rate), 1, dtype=dtype)
    rows, slots = Batching(config.batch_size, length=config.length), pick_slots(len(members), layout.mesh.size)
    return Grid(layout, settings, rows, slots, members), members


def _warm(config: ConfigDict, grid: Grid, members: Sequence[Member]) -> dict[str, dict[str, float]]:
    """Seconds of training in this process both ways, without compilation."""
    checkpoint = open_checkpoint(config.model, "config.model")
    _, params = load_params(checkpoint, jnp.float32, mesh=grid.layout.mesh)
    grid.begin(params)
    losses: dict[str, tuple[float, float]] = {}

    def together(some: Sequence[Member]) -> None:
        ends: dict[str, float] = {}
        grid.train(some, lambda member, trained, log: ends.update({member.name: log[-1]["loss"]}))
        losses.update({name: (loss, loss) for name, loss in ends.items()})

    def apart(some: Sequence[Member]) -> None:
        for member in some:
            settings = dataclasses.replace(grid.settings, steps=member.steps)
            rows = Batching(config.batch_size, length=config.length)
            single = Run(grid.layout, settings, member.data, rows, member.seed)
            state = single.begin(jax.tree.map(jnp.copy, params), seed=member.seed)
            last: list[float] = []
            train(state, single.take, single.loader(), LoopSettings(member.steps),
                  progress=lambda _, loss, last=last: last.append(loss))  # fmt: skip
            losses[member.name] = (losses[member.name][0], last[-1])

    found = {}
    for name, way in ((_WARM_GRID, together), (_WARM_RUNS, apart)):
        way(members[:1])  # compiles, and is not counted
        found[name] = {"seconds": _seconds(lambda way=way: way(members))}
    pairs = np.array(list(losses.values()))
    if not np.allclose(pairs[:, 0], pairs[:, 1], rtol=1e-2):
        raise RuntimeError("the grid's runs and the single runs end with different losses")
    return found


def _seconds(function: Callable[[], None]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _grid_command(config: ConfigDict, output: pathlib.Path) -> list[str]:
    seeds, shots = (",".join(map(str, values)) for values in (config.seeds, config.shots))
    lists = [f"--config.grid.seeds={seeds},", f"--config.grid.shots={shots},"]
    return [*_command(config, "grid", output), "--config.lora.rank=0", *lists]


def _single_command(config: ConfigDict, shots: int, seed: int, output: pathlib.Path) -> list[str]:
    return [*_command(config, "full", output), f"--config.shots={shots}", f"--config.seed={seed}"]


def _command(config: ConfigDict, variant: str, output: pathlib.Path) -> list[str]:
    shared = ("model", "task", "length", "epochs", "batch_size", "learning_rate")
    fields = [f"--config.{field}={config[field]}" for field in shared]
    program = [sys.executable, "-m", "clinmerge_jax.main", f"--config={_ROOT / 'configs' / 'sft.py'}:{variant}"]
    return [*program, *fields, "--config.packing=set", f"--config.output={output}"]
