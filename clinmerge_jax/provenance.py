"""Provenance of a result: versions of the program and its packages, and fingerprints of the inputs."""

import concurrent.futures
import hashlib
import importlib.metadata
import pathlib
import platform
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from clinmerge_jax.checkpoint.adapters.adapter import Adapter
from clinmerge_jax.checkpoint.digest import sha256
from clinmerge_jax.checkpoint.folder import Checkpoint
from clinmerge_jax.checkpoint.formats.safetensors import parse_json
from clinmerge_jax.checkpoint.output import PROVENANCE_FILE

_PACKAGES = ("clinmerge_jax", "jax", "jaxlib", "flax", "optax", "numpy", "transformers")


def environment() -> dict[str, Any]:
    """Python version, machine, package versions, and the kind of device that JAX computes on."""
    versions = {package: importlib.metadata.version(package) for package in _PACKAGES}
    device = jax.devices()[0].device_kind
    return {"python": platform.python_version(), "machine": platform.machine(), "device": device, "packages": versions}


def fingerprint(checkpoint: Checkpoint | Adapter) -> dict[str, Any]:
    """Identifies a checkpoint or an adapter without reading its weights.

    Contains the path, the sizes and modification times of config.json and the weight files, and the SHA-256 of the
    small files that travel with them.
    """
    return file_fingerprint(
        checkpoint.path, _large_files(checkpoint), {path.name: path for path in _carried(checkpoint)}
    )


def file_fingerprint(
    folder: pathlib.Path, large: Iterable[pathlib.Path], small: Mapping[str, pathlib.Path | bytes]
) -> dict[str, Any]:
    """Fingerprint of any input, in the form that `fingerprint` returns.

    Args:
      folder: that holds the large files.
      large: files identified by path, size and modification time.
      small: files or contents by name, identified by SHA-256.
    """
    stats = {str(path.relative_to(folder)): path.stat() for path in large}
    return {
        "path": str(folder.resolve()),
        "files": {name: {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns} for name, stat in stats.items()},
        "carried": {
            name: hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else sha256(content)
            for name, content in small.items()
        },
    }


def digests(checkpoint: Checkpoint | Adapter, known: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 of config.json and the weight files, by file name.

    Args:
      checkpoint: its files are read unless `known` has their digest.
      known: SHA-256 by path.
    """
    with concurrent.futures.ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        jobs = {path: pool.submit(sha256, path) for path in _large_files(checkpoint) if str(path) not in known}
        return {path.name: known.get(str(path)) or jobs[path].result() for path in _large_files(checkpoint)}


def _large_files(checkpoint: Checkpoint | Adapter) -> list[pathlib.Path]:
    if isinstance(checkpoint, Adapter):
        return checkpoint.files
    return [checkpoint.path / "config.json", *checkpoint.files]


def _carried(checkpoint: Checkpoint | Adapter) -> list[pathlib.Path]:
    return [] if isinstance(checkpoint, Adapter) else checkpoint.carried_files()


def same_result(recorded: Mapping[str, Any], identity: Mapping[str, Any]) -> bool:
    """Whether a finished folder's provenance describes this job, whatever the paths and package versions.

    Args:
      recorded: the provenance, with the `identity` of the earlier run and the `sha256` of its inputs by role.
      identity: that of this job; `inputs` are fingerprints by role, `environment` is ignored.
    """

    def rest(side: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in side.items() if key not in ("inputs", "environment")}

    old, new = recorded["identity"].get("inputs", {}), identity["inputs"]
    if rest(recorded["identity"]) != rest(identity) or set(old) != set(new):
        return False
    try:
        return all(_same_input(old[role], new[role], recorded["sha256"][role]) for role in new)
    except (KeyError, TypeError):  # provenance written in the format of another version
        return False


def _same_input(recorded: Mapping[str, Any], current: Mapping[str, Any], known: Mapping[str, str]) -> bool:
    """Compares fingerprints; where only times or the path differ, compares SHA-256 digests."""
    if recorded == current:
        return True
    sizes = [{name: file["bytes"] for name, file in side["files"].items()} for side in (recorded, current)]
    if sizes[0] != sizes[1] or recorded["carried"] != current["carried"]:
        return False
    folder = pathlib.Path(current["path"])
    return all(sha256(folder / name) == known.get(name) for name in current["files"])


def is_credentialed(flag: bool, checkpoints: Iterable[Any]) -> bool:
    """Whether the config or the provenance of an input says that data under a use agreement went in.

    Args:
      flag: the config's field `credentialed`.
      checkpoints: the inputs, each with a `path`.

    Raises:
      BadInput: a provenance.json is damaged.
    """
    paths = [checkpoint.path / PROVENANCE_FILE for checkpoint in checkpoints]
    records = [parse_json(path.read_bytes(), path) for path in paths if path.is_file()]
    return flag or any(isinstance(record, dict) and bool(record.get("credentialed")) for record in records)
