"""Shared by all tests: strict numerics, eight CPU devices, and the places of files that only some machines have."""

import os
import pathlib

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_num_cpu_devices", 8)

_ROOT = pathlib.Path(__file__).parents[1]


_FIGURES: list[str] = []


@pytest.fixture(scope="session")
def figures() -> list[str]:
    """Lines that a test adds to be shown at the end of every run: what was measured, not only that it was enough."""
    return _FIGURES


def pytest_sessionfinish(session) -> None:
    """Hands the figures of a worker process to the one that reports."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["figures"] = _FIGURES


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error) -> None:
    """Takes them over."""
    _FIGURES.extend(getattr(node, "workeroutput", {}).get("figures", []))


def pytest_terminal_summary(terminalreporter) -> None:
    """Shows the figures."""
    if _FIGURES:
        terminalreporter.section("figures")
        for line in _FIGURES:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def repository() -> pathlib.Path:
    """The root of the repository."""
    return _ROOT


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of public data and peers' results beside the repository; CLINMERGE_SHARED names another."""
    path = pathlib.Path(os.environ.get("CLINMERGE_SHARED", _ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip("no folder of shared data beside the repository and CLINMERGE_SHARED is not set")
    return path
