"""Helpers of all benchmarks: floors of plain file operations, watched processes, tables, the record file."""

import contextlib
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from clinmerge_jax import provenance
from clinmerge_jax.checkpoint.output import result_path
from clinmerge_jax.errors import BadInput
from clinmerge_jax.report.tables import table

_CHUNK = 16 << 20

Runs = Mapping[str, Sequence[Mapping[str, float]]]  # by name of what was measured; one record per repeat


def place_with_space(output: str, nbytes: float) -> pathlib.Path:
    """The folder to measure in; it is created if missing.

    Raises:
      BadInput: its disk has less than `nbytes` free.
    """
    place = result_path(output)
    place.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(place).free < nbytes:
        raise BadInput(f"config.output: {place} needs {nbytes / 1e9:.0f} GB free; name a folder elsewhere")
    return place


def check_counts(config: ConfigDict, *fields: str) -> None:
    """Refuses counts under 1, with which a benchmark would measure nothing.

    Args:
      config: of the benchmark.
      fields: names of the config's counts.

    Raises:
      BadInput: a count is under 1; the message names it.
    """
    for field in fields:
        if config[field] < 1:
            raise BadInput(f"config.{field}: is {config[field]}; give 1 or more")


def record(path: pathlib.Path, measured: Runs, **facts: Any) -> None:
    """Writes the figures of every repeat to a JSON file, with versions, cores, processor and further facts."""
    result = {**provenance.environment(), "cores": os.cpu_count(), "processor": _processor(), **facts}
    path.write_text(json.dumps({**result, "measured": measured}, indent=1) + "\n")


def drop_cache(files: Sequence[pathlib.Path]) -> None:
    """Flushes pending writes, so that no run pays for the one before it, and drops the files' pages from the cache."""
    os.sync()
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def plain_copies(inputs: Sequence[pathlib.Path], nbytes: int, target: pathlib.Path) -> dict[str, float]:
    """Seconds to read the inputs one after another, and to write and sync `nbytes` from memory."""
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


def watch(command: Sequence[str]) -> dict[str, float]:
    """Runs a command; returns its wall seconds and peak resident bytes (VmHWM, which includes mapped pages)."""
    with tempfile.TemporaryFile("w+") as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        peak = 0
        while process.poll() is None:
            with contextlib.suppress(OSError, IndexError):  # the process may end while its status is read
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


def ratios_table(measured: Runs, floors: Mapping[str, str], what: str) -> str:
    """Table of median seconds, their range, and the median ratio to the floor of the same repeat.

    Args:
      measured: records with `seconds`, and with `peak_bytes` where memory was watched.
      floors: the name of each row's floor, which is a row too.
      what: heading of the first column.
    """
    rows = []
    for name, runs in measured.items():
        seconds = [run["seconds"] for run in runs]
        floor = [run["seconds"] for run in measured[floors[name]]]
        ratio = statistics.median(one / least for one, least in zip(seconds, floor, strict=True))
        peak = max(run.get("peak_bytes", 0) for run in runs)
        digits = 1 if statistics.median(seconds) >= 10 else 3
        rows.append([
            name,
            f"{statistics.median(seconds):.{digits}f}",
            f"{min(seconds):.{digits}f} to {max(seconds):.{digits}f}",
            f"{ratio:.2f}",
            f"{peak / 1e9:.2f}" if peak else "",
        ])  # fmt: skip
    return table([what, "seconds, median", "range", "over the floor, median", "peak resident GB, largest"], rows)
