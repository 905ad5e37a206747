"""Fine-tunes one checkpoint many times at once: for several seeds, numbers of examples, and learning rates.

Each run has its own folder below the grid's, the same that the job `sft` would write, moved into place as soon as the
run is trained. So a rerun trains only the runs that are left, and a single run of the same config finds its result
finished.
"""

import json
import pathlib
import shutil

import jax.numpy as jnp
import tqdm
from absl import logging
from ml_collections import ConfigDict

from clinmerge_jax.checkpoint.output import PROVENANCE_FILE, OutputState, result_path, write_atomically
from clinmerge_jax.checkpoint.parameters.params import load_params
from clinmerge_jax.errors import BadInput, RunFailure
from clinmerge_jax.fine_tuning.grid import run_configs
from clinmerge_jax.fine_tuning.result import LOG, STEPS, Result
from clinmerge_jax.fine_tuning.settings import frozen_leaves, step_settings
from clinmerge_jax.fine_tuning.source import Source, Start, open_start
from clinmerge_jax.llama.parameters import Params
from clinmerge_jax.parallel.layout import Layout, one_device
from clinmerge_jax.report.tables import table
from clinmerge_jax.training.grid import Grid, Member, pick_slots, replicas
from clinmerge_jax.training.log import TrainingLog, read_column

TABLE_FILE = "grid.json"


def run(config: ConfigDict) -> None:
    """Runs the grid that the config describes; see configs/sft.py for its fields.

    Raises:
      BadInput: a field or a file is wrong.
      RunFailure: the losses of some runs are not finite; the others are finished.
    """
    root = result_path(config.output)
    if (root / PROVENANCE_FILE).exists():
        raise BadInput(f"config.output: {root} is a result itself; name another folder for the grid")
    configs = run_configs(config)
    start = open_start(config)
    layout = replicas(start.llama, config.mesh.data)
    results = _results(configs, start, layout)
    members = {name: _member(name, result) for name, result in results.items()}
    grid = Grid(
        layout,
        next(iter(results.values())).settings,
        next(iter(results.values())).sets.rows(config, start.llama),
        config.grid.at_once or pick_slots(len(results), layout.mesh.size),
        list(members.values()),
    )
    frozen = frozen_leaves(config, start.llama)
    left = {name: result for name, result in results.items() if result.folder().finished() is None}
    failures = _train(grid, left, members, frozen) if left else []
    print(_table(root, {name: result for name, result in results.items() if name not in failures}))
    if not left:
        print(f"All {len(results)} runs are finished already: same start, examples and settings, nothing to do.")
        print("To make them again: --config.overwrite=True.")
    if failures:
        raise RunFailure(f"{len(failures)} of {len(left)} runs failed: {'; '.join(failures.values())}")
    print(f"\nThe runs are in {root}, this table is in {root / TABLE_FILE}.")


def _results(configs: dict[str, ConfigDict], start: Start, layout: Layout) -> dict[str, Result]:
    """The planned result of each run, by the run's name."""
    source = Source(next(iter(configs.values())), start)
    found = {}
    for name, one in configs.items():
        sets = source.sets(one.shots, one.seed)
        rows = sets.rows(one, start.llama)
        settings = step_settings(one, start.llama, len(sets.examples.sequences), rows.replay_share, layout.device)
        found[name] = Result(one, start, sets, settings)
    return found


def _member(name: str, result: Result) -> Member:
    config, sets = result.config, result.sets
    return Member(
        name, sets.examples.sequences, result.settings.steps, config.seed, config.learning_rate, sets.name_rows()
    )


def _train(
    grid: Grid, results: dict[str, Result], members: dict[str, Member], frozen: frozenset[tuple[str, ...]]
) -> dict[str, str]:
    """Trains the runs and writes their folders; returns the reasons of failed runs, by name."""
    start = next(iter(results.values())).start
    lengths = [result.settings.steps for result in results.values()]
    logging.info(
        "%d runs of %d to %d steps, %d at a time on %d devices",
        len(results), min(lengths), max(lengths), grid.slots, grid.layout.mesh.size,
    )  # fmt: skip
    logging.info("%s", grid.planned)
    dtype = grid.settings.dtype if grid.settings.lora else jnp.float32
    grid.begin(load_params(start.checkpoint, dtype, mesh=grid.layout.mesh)[1], frozen)

    def finish(member: Member, trained: Params, rows: list[dict[str, float]]) -> None:
        _write(results[member.name], grid, trained, rows)
        logging.info("%s: %d steps, loss %.4f", member.name, member.steps, rows[-1]["loss"])

    with tqdm.tqdm(total=sum(lengths), desc="train", unit="step", mininterval=0.5) as bar:

        def progress(steps: int, loss: float) -> None:
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            bar.update(steps)

        return grid.train([members[name] for name in results], finish, progress)


def _write(result: Result, grid: Grid, trained: Params, rows: list[dict[str, float]]) -> None:
    """Writes the folder of a trained run.

    Raises:
      RunFailure: the folder cannot be written; the other runs continue.
    """
    try:
        _write_folder(result, grid, trained, rows)
    except BadInput as error:
        raise RunFailure(str(error)) from error


def _write_folder(result: Result, grid: Grid, trained: Params, rows: list[dict[str, float]]) -> None:
    with result.folder() as output:
        if output.open() is OutputState.FINISHED:  # another process wrote it meanwhile
            return
        for name in (STEPS, LOG):
            shutil.rmtree(output.path(name), ignore_errors=True)
        with TrainingLog(output.path(LOG)) as log:
            for row in rows:
                log.add(int(row["step"]), {name: value for name, value in row.items() if name != "step"})
            if result.sets.validation is not None:
                loss = grid.loss(trained, result.sets.validation.sequences)
                log.add(result.settings.steps, {"validation_loss": loss})
        result.write_weights(trained, one_device(grid.layout.config), output)
        result.commit(output, result.settings.steps, result.settings.steps)


def _table(root: pathlib.Path, results: dict[str, Result]) -> str:
    """Table of the finished runs' losses, read from their logs; also written to `TABLE_FILE`."""
    found = []
    for name, result in results.items():
        folder = root / name / LOG
        losses, held_out = (read_column(folder, column) for column in ("loss", "validation_loss"))
        row = {
            "run": name,
            "shots": result.config.shots,
            "learning_rate": result.config.learning_rate,
            "seed": result.config.seed,
            "steps": result.settings.steps,
            "first_loss": losses[0][1],
            "loss": losses[-1][1],
        }
        found.append({**row, "validation_loss": held_out[-1][1]} if held_out else row)
    if not found:
        return "No run is finished."
    write_atomically(root / TABLE_FILE, (json.dumps(found, indent=1) + "\n").encode())
    shown = ["steps", "first_loss", "loss", *(["validation_loss"] if "validation_loss" in found[0] else [])]
    heads = {"steps": "steps", "first_loss": "first loss", "loss": "last loss", "validation_loss": "validation loss"}
    rows = [[row["run"], *(f"{row[key]:.3f}" if key != "steps" else str(row[key]) for key in shown)] for row in found]
    return table(["run", *(heads[key] for key in shown)], rows)
