"""Shared by all tests: strict numerics, eight CPU devices, compiled programs, the places of files that some lack."""

import os
import pathlib
import shutil

_ROOT = pathlib.Path(__file__).parents[1]

# A program that one test has compiled is compiled for no other: in this process, in another worker, in a process that a
# test starts, or in a later run. JAX reads these when it is imported.
_COMPILED = _ROOT / ".pytest_cache" / "compiled_programs"
_LARGEST = 2**31  # bytes of it, beyond which it begins anew
_MOST_MAPS = 30_000  # memory maps of a worker; with 65,530 Linux gives it no more
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_COMPILED))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_num_cpu_devices", 8)

_FIGURES: list[str] = []


def pytest_sessionstart(session) -> None:
    """Keeps the compiled programs of former runs from growing without end."""
    alone = not hasattr(session.config, "workerinput")
    if alone and _COMPILED.is_dir() and sum(file.stat().st_size for file in _COMPILED.iterdir()) > _LARGEST:
        shutil.rmtree(_COMPILED)


@pytest.fixture(scope="module", autouse=True)
def few_programs_in_memory():
    """Drops compiled programs between modules once there are many: each takes memory maps, and Linux allows 65,530."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > _MOST_MAPS:
        jax.clear_caches()


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
