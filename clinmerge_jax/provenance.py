"""What produced a result: the program, the packages, the inputs."""

import importlib.metadata
import pathlib
import platform
from collections.abc import Mapping
from typing import Any

from clinmerge_jax.checkpoint.digest import sha256
from clinmerge_jax.checkpoint.folder import Checkpoint

_PACKAGES = ("clinmerge_jax", "jax", "jaxlib", "flax", "optax", "numpy", "transformers")


def environment() -> dict[str, Any]:
    """Python, machine and package versions."""
    versions = {package: importlib.metadata.version(package) for package in _PACKAGES}
    return {"python": platform.python_version(), "machine": platform.machine(), "packages": versions}


def fingerprint(checkpoint: Checkpoint) -> dict[str, Any]:
    """What identifies a Checkpoint without reading its weights: place, sizes and times of its files."""
    files = [checkpoint.path / "config.json", *checkpoint.files]
    stats = {path.name: path.stat() for path in files}
    return {
        "path": str(checkpoint.path.resolve()),
        "files": {name: {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns} for name, stat in stats.items()},
    }


def same_inputs(recorded: Mapping[str, Any], current: Mapping[str, Any], digests: Mapping[str, str]) -> bool:
    """Whether a fingerprint names the files of an earlier one.

    Sizes and times settle it where they agree; where only the times or the place differ (a fresh
    clone, a copy), the digests of the weights do.

    Args:
      recorded: the fingerprint of the earlier run.
      current: that of now.
      digests: SHA-256 by file name, as the earlier run recorded them.
    """
    if recorded == current:
        return True
    sizes = [{name: file["bytes"] for name, file in side["files"].items()} for side in (recorded, current)]
    if sizes[0] != sizes[1]:
        return False
    folder = pathlib.Path(current["path"])
    return all(sha256(folder / name) == digests.get(name) for name in current["files"])
