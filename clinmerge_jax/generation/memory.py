"""Checks that the key-value cache fits into memory."""

import pathlib
from typing import Any

from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.cache import cache_bytes
from clinmerge_jax.parallel.layout import Layout


def check_memory(layout: Layout, slots: int, length: int, dtype: Any, models: int = 1) -> None:
    """Checks that the caches of some models fit into the free memory of the devices.

    Raises:
      BadInput: it does not fit; the message says how many slots would.
    """
    free = _free_bytes(layout)
    wanted = models * cache_bytes(layout.config, slots, length, dtype)
    if free is not None and wanted > free:
        fit = int(free // (models * cache_bytes(layout.config, 1, length, dtype)))
        raise BadInput(
            f"config.slots: a cache of {slots} slots of {length} tokens takes {wanted / 1e9:.3g} GB, but the devices"
            f" have {free / 1e9:.3g} GB free; {f'give {fit}' if fit else 'give a smaller config.length'}"
        )


def _free_bytes(layout: Layout) -> float | None:
    """Returns 95 % of the free bytes of all devices of the mesh; for CPUs free host memory; None if unknown."""
    devices = layout.mesh.devices.ravel()
    stats = devices[0].memory_stats() if devices[0].platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return 0.95 * len(devices) * (stats["bytes_limit"] - stats["bytes_in_use"])
    if devices[0].platform != "cpu":
        return None
    return _available_memory()


def _available_memory() -> float | None:
    path = pathlib.Path("/proc/meminfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    found = [line.split() for line in lines if line.startswith("MemAvailable:")]
    return 1024.0 * int(found[0][1]) if found else None
