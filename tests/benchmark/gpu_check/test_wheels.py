"""Wheels go into a folder of their own, and never over a package that is there."""

import zipfile

import pytest

from clinmerge_jax.benchmark.gpu_check.wheels import install
from clinmerge_jax.errors import BadInput


def _wheel(folder, name):
    """The least that pip takes for a wheel."""
    info = f"{name}-99.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-99.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "VERSION = 99\n")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 99.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def test_only_what_is_missing_is_installed(tmp_path):
    for name in ("numpy", "nowhere_else"):
        _wheel(tmp_path, name)
    assert install(tmp_path, tmp_path / "packages") == ["nowhere_else"]
    assert (tmp_path / "packages" / "nowhere_else.py").is_file()
    assert not (tmp_path / "packages" / "numpy.py").exists()


def test_a_folder_without_wheels_and_a_damaged_wheel_are_refused(tmp_path):
    with pytest.raises(BadInput, match="^--wheels: .* holds no wheel"):
        install(tmp_path, tmp_path / "packages")
    (tmp_path / "nowhere_else-99.0-py3-none-any.whl").write_bytes(b"")
    with pytest.raises(BadInput, match="^--wheels: "):
        install(tmp_path, tmp_path / "packages")
