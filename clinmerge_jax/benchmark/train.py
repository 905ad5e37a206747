"""Benchmarks training steps with random weights, for all weights or an adapter, in several batch shapes.

Each program is a separate process. The floor of a step is the operations that it needs, without recomputation, at the
speed of a product of two matrices in the same repeat, the best of all programs. The peer is transformers with
torch.optim.AdamW and, for adapters, PEFT.
"""

import dataclasses
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from clinmerge_jax.benchmark.measuring import measure
from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.model import Remat
from clinmerge_jax.report.tables import table
from clinmerge_jax.training.flops import step_flops

_PEER_RUNNER = pathlib.Path(__file__).parents[2] / "third_party" / "peers" / "train_with_transformers.py"
_OURS, _FLOOR = "clinmerge_jax", "floor"


@dataclasses.dataclass(frozen=True)
class _Program:
    """A training program: a command that takes the paths of a job file and of a result file."""

    command: Sequence[str]
    adapters: bool = True  # whether it can train adapters
    compiled: bool = False


def run(config: ConfigDict) -> None:
    """Runs the benchmark; see configs/benchmark.py for its fields. Only the training processes use the devices."""
    llama = LlamaConfig.from_json(config.model.to_dict(), "config.model")
    measure.check_counts(config, "repeats")
    cases = dict(_cases(config, llama))
    programs = _programs(config)
    place = measure.place_with_space(config.output, 1e6)
    measured: dict[str, list[dict[str, float]]] = {}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="train-", dir=place) as temporary:
        for repeat in range(config.repeats):
            for case, job in cases.items():
                done = {}
                for name, program in programs.items():
                    row = f"{case}: {name}"
                    if row in failed or (job["rank"] and not program.adapters):
                        continue
                    try:
                        done[row] = _train(program, job, pathlib.Path(temporary))
                    except RuntimeError as error:
                        if not program.compiled:  # torch.compile does not work everywhere
                            raise
                        failed[row] = str(error).splitlines()[-1]
                        logging.warning("%s failed: %s", row, failed[row])
                for row, record in _judged(case, job, llama, done).items():
                    measured.setdefault(row, []).append(record)
                    logging.info("repeat %d, %s: %s", repeat + 1, row, record)
    settings = {name: config[name] for name in ("dtype", "remat", "steps", "rank")}
    measure.record(place / "train.json", measured, failed=failed, **settings)
    print(_table(measured))
    print(
        f"{config.repeats} repeats of {config.steps} steps after a first one that compiles; computation in"
        f" {config.dtype}, remat {config.remat}. Floor: the operations that a step needs, at the speed of a product of"
        f" two matrices of {config.product} x {config.product}. Peak: allocated on the device; on CPUs resident."
    )
    for row, reason in failed.items():
        print(f"{row} failed: {reason}")
    if config.peer and any(job["rank"] for job in cases.values()) and not programs["transformers"].adapters:
        print("Adapters were trained without the peer: name a Python that has PEFT with --config.peer_python=PYTHON.")
    print(f"\nThe figures of every run are in {place / 'train.json'}.")


def _cases(config: ConfigDict, llama: LlamaConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the jobs that are trained, with their names; shapes are the inner loop.

    Raises:
      BadInput: a field is wrong; the message names it.
    """
    if config.remat not in [remat.value for remat in Remat]:
        raise BadInput(
            f"config.remat: {config.remat!r} is unknown; give one of {', '.join(one.value for one in Remat)}"
        )
    if config.dtype not in ("float32", "bfloat16"):
        raise BadInput(f"config.dtype: {config.dtype!r} is unknown; give float32 or bfloat16")
    measure.check_counts(config, "steps", "rank", "product")
    if not config.weights or not set(config.weights) <= {"full", "lora"}:
        raise BadInput(f"config.weights: {config.weights}; give full, lora or both")
    common = {name: config[name] for name in ("steps", "dtype", "remat", "attention", "product")}
    common |= {"model": config.model.to_dict(), "mesh": config.mesh.to_dict()}
    for weights in config.weights:
        for shape in config.shapes:
            if len(shape) != 2 or shape[0] < 1 or not 1 < shape[1] <= llama.max_position_embeddings:
                raise BadInput(
                    f"config.shapes: {shape}; give pairs of rows and of tokens in each, at most"
                    f" {llama.max_position_embeddings}"
                )
            rows, tokens = shape
            rank = config.rank if weights == "lora" else 0
            yield f"{weights}, {rows} x {tokens}", {**common, "rows": rows, "tokens": tokens, "rank": rank}


def _programs(config: ConfigDict) -> dict[str, _Program]:
    """The training programs, in the order of a repeat.

    Raises:
      BadInput: the peer is not installed.
    """
    programs = {_OURS: _Program([sys.executable, "-m", "clinmerge_jax.benchmark.train_steps"])}
    if not config.peer:
        return programs
    python = config.peer_python or sys.executable
    if not has_packages(python, "torch", "transformers"):
        raise BadInput(
            f"config.peer: {python} has no torch and transformers; install them, name another with config.peer_python,"
            " or set config.peer to False"
        )
    command, adapters = [python, str(_PEER_RUNNER)], has_packages(python, "peft")
    programs["transformers"] = _Program(command, adapters)
    if config.peer_compiled:
        programs["transformers, compiled"] = _Program(command, adapters, compiled=True)
    return programs


def has_packages(python: str, *packages: str) -> bool:
    """Whether a Python interpreter finds all of some packages."""
    script = "import importlib.util, sys; sys.exit(not all(map(importlib.util.find_spec, sys.argv[1:])))"
    try:
        return subprocess.run([python, "-c", script, *packages]).returncode == 0
    except OSError as error:
        raise BadInput(f"config.peer_python: {python} cannot be run ({error.strerror}); name a Python") from error


def _train(program: _Program, job: Mapping[str, Any], work: pathlib.Path) -> dict[str, float]:
    """Runs a program on a job; returns the figures that it reports."""
    (work / "job.json").write_text(json.dumps({**job, "compiled": program.compiled}))
    command = [*program.command, str(work / "job.json"), str(work / "result.json")]
    process = subprocess.run(command, capture_output=True, text=True)
    said = process.stderr.strip() or process.stdout.strip()
    if process.returncode == 2 and said.splitlines()[-1].startswith("error: "):
        raise BadInput(said.splitlines()[-1].removeprefix("error: "))
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{said[-2000:]}")
    return json.loads((work / "result.json").read_bytes())


def _judged(
    case: str, job: Mapping[str, Any], llama: LlamaConfig, done: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """One repeat of a case: its floor, and the figures of each program with its share of the peak (MFU)."""
    tokens = job["rows"] * job["tokens"]
    flops = step_flops(llama, tokens, tokens * (job["tokens"] + 1) // 2, frozen=job["rank"] > 0)
    peak = max(found["product_flops"] for found in done.values())
    floor = flops / (peak * done[f"{case}: {_OURS}"]["devices"])
    found = {f"{case}: {_FLOOR}": {"seconds": floor, "tokens_per_second": tokens / floor, "mfu": 1.0}}
    sheet = done[f"{case}: {_OURS}"].get("sheet_flops")
    for row, record in done.items():
        speed = flops / record["seconds"] / record["devices"]
        more = {"mfu_of_data_sheet": speed / sheet} if sheet else {}
        found[row] = {**record, "tokens_per_second": tokens / record["seconds"], "mfu": speed / peak, **more}
    return found


def _table(measured: measure.Runs) -> str:
    """Table of medians; a ratio is the median of the ratios within each repeat."""
    rows = []
    for name, runs in measured.items():
        case, _, program = name.partition(": ")
        sheets = [run["mfu_of_data_sheet"] for run in runs if "mfu_of_data_sheet" in run]
        ours = measured[f"{case}: {_OURS}"]
        pairs = zip(ours, runs) if program not in (_OURS, _FLOOR) else ()
        ratios = [one["tokens_per_second"] / other["tokens_per_second"] for one, other in pairs]
        rows.append([
            name,
            f"{statistics.median(run['seconds'] for run in runs):.3g}",
            f"{statistics.median(run['tokens_per_second'] for run in runs):.0f}",
            f"{statistics.median(run['mfu'] for run in runs):.1%}",
            f"{statistics.median(sheets):.1%}" if sheets else "",
            f"{statistics.median(ratios):.2f}" if ratios else "",
            f"{max(run['peak_bytes'] for run in runs) / 1e9:.2f}" if program != _FLOOR else "",
            f"{statistics.median(run['first_seconds'] for run in runs):.1f}" if program != _FLOOR else "",
        ])  # fmt: skip
    header = ["training", "seconds a step", "tokens/s", "MFU", "of the data sheet", "clinmerge_jax / it"]
    return table([*header, "peak GB", "first step, seconds"], rows)
