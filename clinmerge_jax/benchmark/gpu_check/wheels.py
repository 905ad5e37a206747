"""Installs carried wheels beside the machine's packages, only for packages that it lacks."""

import importlib.metadata
import pathlib
import shutil
import subprocess
import sys

from clinmerge_jax.errors import BadInput


def install(folder: pathlib.Path, target: pathlib.Path) -> list[str]:
    """Installs wheels into a separate folder, which is emptied first; skips packages that the machine has.

    Args:
      folder: holds the wheels, with all that they need beyond the machine's packages.
      target: folder for PYTHONPATH.

    Returns:
      The names of the installed packages.

    Raises:
      BadInput: the folder holds no wheel, or one does not fit this Python.
    """
    found = sorted(folder.glob("*.whl"))
    if not found:
        raise BadInput(f"--wheels: {folder} holds no wheels; launch/gpu_check.sh explains how to get them")
    shutil.rmtree(target, ignore_errors=True)
    lacking = [wheel for wheel in found if not _is_there(wheel.name.split("-")[0])]
    if lacking:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index",
                   "--no-deps", "--no-compile", "--target", str(target)]  # fmt: skip
        process = subprocess.run([*command, *map(str, lacking)], capture_output=True, text=True)
        if process.returncode:
            reason = " ".join(process.stderr.strip().splitlines()[-1:])
            raise BadInput(f"--wheels: {reason or 'pip failed'}; fetch wheels for this Python")
    return [wheel.name.split("-")[0] for wheel in lacking]


def _is_there(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
