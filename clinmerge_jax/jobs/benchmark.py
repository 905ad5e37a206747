"""Measures whole processes against their floor and against the peer, in one run.

merge: two checkpoints of random weights are merged from a cold page cache. The floor is what plain
file operations take for the same bytes: read both inputs, then write and sync as many bytes as the
result has.
"""

import contextlib
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import yaml
from absl import logging
from ml_collections import ConfigDict

from clinmerge_jax import provenance
from clinmerge_jax.checkpoint.folder import INDEX_FILE
from clinmerge_jax.checkpoint.output import result_path
from clinmerge_jax.checkpoint.safetensors import header_bytes
from clinmerge_jax.checkpoint.weight_files import index_json, split_into_shards
from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.parameters import count_parameters, parameters
from clinmerge_jax.report.tables import table

_CHUNK = 16 << 20
_ROOT = pathlib.Path(__file__).parents[2]
_PEER_RUNNER = _ROOT / "third_party" / "peers" / "merge_with_mergekit.py"
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_NOISE_ENTRIES = 1 << 24
_METHODS = ("linear", "slerp")


def run(config: ConfigDict) -> None:
    """Runs the benchmark that `config.what` names."""
    _BENCHMARKS[config.what](config)


def _merge(config: ConfigDict) -> None:
    llama = LlamaConfig.from_json(config.model.to_dict(), "config.model")
    nbytes = 2 * count_parameters(llama)
    place = result_path(config.output)
    unknown = [method for method in config.methods if method not in _METHODS]
    if unknown or not config.methods or config.repeats < 1:
        raise BadInput(
            f"config.methods: {config.methods}, config.repeats: {config.repeats}; give of {_METHODS}, 1 or more"
        )
    place.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(place).free < 3.2 * nbytes:
        raise BadInput(f"config.output: {place} needs {3.2 * nbytes / 1e9:.0f} GB free; name a folder elsewhere")
    measured: dict[str, list[dict[str, float]]] = {}
    # A folder of its own: what the benchmark removes is only what it made.
    with tempfile.TemporaryDirectory(prefix="merge-", dir=place) as temporary:
        work = pathlib.Path(temporary)
        folders = [work / "instruct", work / "clinical"]
        for seed, folder in enumerate(folders):
            logging.info("making %s: %.2fe9 parameters, %.1f GB", folder, nbytes / 2e9, nbytes / 1e9)
            make_checkpoint(folder, config.model.to_dict(), llama, seed * config.drift)
        inputs = [path for folder in folders for path in sorted(folder.glob("*.safetensors"))]
        for repeat in range(config.repeats):
            for name, job in _jobs(config, folders, inputs, nbytes, work):
                drop_cache(inputs)
                measured.setdefault(name, []).append(job())
                logging.info("repeat %d, %s: %s", repeat + 1, name, measured[name][-1])
    result = {**provenance.environment(), "cores": os.cpu_count(), "processor": _processor(), "bytes": nbytes}
    result["measured"] = measured
    (place / "merge.json").write_text(json.dumps(result, indent=1) + "\n")
    print(_report(measured, nbytes, config.repeats))
    print(f"\nThe figures of every run are in {place / 'merge.json'}.")


def _jobs(
    config: ConfigDict, folders: Sequence[pathlib.Path], inputs: Sequence[pathlib.Path], nbytes: int, work: pathlib.Path
) -> Iterator[tuple[str, Callable[[], dict[str, float]]]]:
    """What one repeat measures, the floor first."""
    yield "floor", lambda: plain_copies(inputs, nbytes, work / "floor.bin")
    for method in config.methods:
        yield f"clinmerge_jax {method}", lambda method=method: _run_ours(method, folders, work / "merged")
        if config.peer_python:
            yield f"mergekit {method}", lambda method=method: _run_peer(config.peer_python, method, folders, work)


def make_checkpoint(folder: pathlib.Path, raw: dict[str, Any], llama: LlamaConfig, drift: float) -> None:
    """Writes a random bfloat16 checkpoint in shards of 1 GB.

    Two checkpoints that differ in `drift` alone are siblings: the same weights plus noise of that
    relative size. Values are windows of one random block, so that making 3 GB takes seconds.
    """
    rng = np.random.default_rng(0)
    block = rng.standard_normal(_NOISE_ENTRIES, np.float32)
    block += np.float32(drift) * rng.standard_normal(_NOISE_ENTRIES, np.float32)
    values = (0.02 * block).astype(_BFLOAT16)
    shapes = {name: row.shape(llama) for row in parameters(llama) for name in row.names(llama)}
    sizes = {name: int(np.prod(shape)) for name, shape in shapes.items()}
    shards = split_into_shards([(name, 2 * size) for name, size in sizes.items()], 10**9)
    offsets = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    for file_name, names in shards.items():
        with (folder / file_name).open("wb") as file:
            file.write(header_bytes((name, _BFLOAT16, shapes[name]) for name in names))
            for name in names:
                left, start = sizes[name], int(offsets.integers(_NOISE_ENTRIES))
                while left:
                    part = values[start : start + left]
                    file.write(memoryview(part.view(np.uint8)))
                    left, start = left - len(part), 0
            os.fsync(file.fileno())
    index = index_json(shards, 2 * sum(sizes.values()))
    if index:
        (folder / INDEX_FILE).write_text(index)
    (folder / "config.json").write_text(json.dumps(raw, indent=1) + "\n")


def drop_cache(files: Sequence[pathlib.Path]) -> None:
    """Has the kernel write what is waiting, so that no run pays for the one before it, and forget the files' pages."""
    os.sync()
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def plain_copies(inputs: Sequence[pathlib.Path], nbytes: int, target: pathlib.Path) -> dict[str, float]:
    """Seconds to read the inputs in sequence, and to write and sync `nbytes` from memory."""
    buffer = bytearray(_CHUNK)
    start = time.perf_counter()
    for path in inputs:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    read = time.perf_counter() - start
    payload = memoryview(np.random.default_rng(2).bytes(_CHUNK))
    start = time.perf_counter()
    with target.open("wb", buffering=0) as file:
        for position in range(0, nbytes, _CHUNK):
            file.write(payload[: min(_CHUNK, nbytes - position)])
        os.fsync(file.fileno())
    write = time.perf_counter() - start
    target.unlink()
    return {"seconds": read + write, "read_seconds": read, "write_seconds": write}


def _run_ours(method: str, folders: Sequence[pathlib.Path], output: pathlib.Path) -> dict[str, float]:
    command = [
        sys.executable, "-m", "clinmerge_jax.main", f"--config={_ROOT / 'configs' / 'merge.py'}:{method}",
        f"--config.instruct={folders[0]}", f"--config.clinical={folders[1]}", "--config.base=",
        f"--config.output={output}", "--config.evaluate=",
    ]  # fmt: skip
    measured = _watch(command)
    shutil.rmtree(output)
    return measured


def _run_peer(python: str, method: str, folders: Sequence[pathlib.Path], work: pathlib.Path) -> dict[str, float]:
    models: list[dict[str, Any]] = [{"model": str(folder.resolve())} for folder in folders]
    recipe: dict[str, Any] = {"merge_method": method, "models": models, "dtype": "bfloat16"}
    if method == "slerp":
        recipe |= {"base_model": models[0]["model"], "parameters": {"t": 0.5}}
    else:
        for model in models:
            model["parameters"] = {"weight": 0.5}
    path, output = work / "peer.yml", work / "peer"
    path.write_text(yaml.safe_dump(recipe))
    measured = _watch([python, str(_PEER_RUNNER), str(path), str(output)])
    shutil.rmtree(output)
    return measured


def _watch(command: Sequence[str]) -> dict[str, float]:
    """Runs a command; wall seconds of the whole process and its peak resident bytes (VmHWM, mapped pages included)."""
    with tempfile.TemporaryFile("w+") as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        peak = 0
        while process.poll() is None:
            with contextlib.suppress(OSError, IndexError):  # the process may end while it is looked at
                status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
                peak = max(peak, int(status.split("VmHWM:")[1].split()[0]) * 1024)
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        if process.returncode:
            log.seek(0)
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{log.read()[-2000:]}")
    return {"seconds": seconds, "peak_bytes": peak}


def _processor() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def _report(measured: dict[str, list[dict[str, float]]], nbytes: int, repeats: int) -> str:
    floors = [run["seconds"] for run in measured["floor"]]
    rows = []
    for name, runs in measured.items():
        seconds = [run["seconds"] for run in runs]
        ratio = statistics.median(one / floor for one, floor in zip(seconds, floors, strict=True))
        peak = max(run.get("peak_bytes", 0) for run in runs)
        rows.append([
            name,
            f"{statistics.median(seconds):.1f}",
            f"{min(seconds):.1f} to {max(seconds):.1f}",
            f"{ratio:.2f}",
            f"{peak / 1e9:.2f}" if peak else "",
        ])  # fmt: skip
    header = ["whole process", "seconds, median", "range", "over the floor, median", "peak resident GB, largest"]
    note = (
        f"{repeats} repeats, page cache of the inputs dropped before each run; two inputs of {nbytes / 1e9:.2f} GB, one"
        " result. Floor: read both inputs, then write and sync the result's bytes, one after the other."
    )
    return f"{table(header, rows)}\n{note}"


_BENCHMARKS = {"merge": _merge}
