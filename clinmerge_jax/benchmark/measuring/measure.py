"""What every benchmark needs: floors of plain file operations, processes watched, tables, the record."""

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

Runs = Mapping[str, Sequence[Mapping[str, float]]]  # by what was measured, one record per repeat


def place_with_space(output: str, nbytes: float) -> pathlib.Path:
    """The folder to measure in, made where it is not there.

    Raises:
      BadInput: its disk has too little space.
    """
    place = result_path(output)
    place.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(place).free < nbytes:
        raise BadInput(f"config.output: {place} needs {nbytes / 1e9:.0f} GB free; name a folder elsewhere")
    return place


def check_counts(config: ConfigDict, *fields: str) -> None:
    """Refuses a benchmark that would measure nothing.

    Args:
      config: of the benchmark.
      fields: that count something.

    Raises:
      BadInput: naming the field that is under 1.
    """
    for field in fields:
        if config[field] < 1:
            raise BadInput(f"config.{field}: is {config[field]}; give 1 or more")


def record(path: pathlib.Path, measured: Runs, **facts: Any) -> None:
    """Writes every figure of every repeat, with what produced them."""
    result = {**provenance.environment(), "cores": os.cpu_count(), "processor": _processor(), **facts}
    path.write_text(json.dumps({**result, "measured": measured}, indent=1) + "\n")


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


def watch(command: Sequence[str]) -> dict[str, float]:
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


def ratios_table(measured: Runs, floors: Mapping[str, str], what: str) -> str:
    """Median, range, and median ratio to the floor of the same repeat.

    Args:
      measured: with `seconds`, and `peak_bytes` where memory was looked at.
      floors: for each row, the row that is its floor.
      what: the first column's heading.
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
