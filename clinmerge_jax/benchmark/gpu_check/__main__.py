"""Command line of the GPU check; see launch/gpu_check.sh."""

import argparse
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence

from clinmerge_jax.benchmark.gpu_check.driver import Processes, run_parts
from clinmerge_jax.benchmark.gpu_check.parts import PARTS, Part
from clinmerge_jax.benchmark.gpu_check.record import Record, markdown
from clinmerge_jax.benchmark.gpu_check.wheels import install
from clinmerge_jax.errors import BadInput

_ROOT = pathlib.Path(__file__).parents[3]
_PLACE = _ROOT / "runs" / "gpu_check"
_WHEELS, _PACKAGES = _PLACE / "wheels", _PLACE / "packages"
_BUDGET = 480.0  # seconds
_STRETCH = 3.0  # factor of the time limits in a rehearsal: a busy CPU compiles slowly


def main() -> int:
    """Runs the check; returns 0 if no part failed, 1 if one did, 2 if it cannot begin."""
    options = _options()
    try:
        parts = _chosen(options.only)
        if not options.rehearse and not any(pathlib.Path("/dev").glob("nvidia[0-9]*")):
            raise BadInput("/dev: has no NVIDIA GPU; give --rehearse to try the parts on a CPU")
        if options.model and not (pathlib.Path(options.model) / "config.json").is_file():
            raise BadInput(f"--model: {options.model} has no config.json; give the folder of a Llama")
        wheels = pathlib.Path(options.wheels) if options.wheels else _WHEELS
        shutil.rmtree(_PACKAGES, ignore_errors=True)
        if options.wheels or wheels.is_dir():
            install(wheels, _PACKAGES)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    out = pathlib.Path(os.environ.get("OUT") or _PLACE).absolute()
    out.mkdir(parents=True, exist_ok=True)
    record = Record(out / "gpu_check.json")
    record.start(keep=bool(options.only))
    given = out / "options.json"
    settings = {"parity": {"model": str(pathlib.Path(options.model).absolute())}} if options.model else {}
    given.write_text(
        json.dumps({"rehearse": options.rehearse, "command": _command_line(options), "settings": settings})
    )
    environment = _environment(options.rehearse)
    command = [sys.executable, "-m", "clinmerge_jax.benchmark.gpu_check.part"]
    processes = Processes(lambda part: [*command, part.name, str(record.path), str(given)], environment, out)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    lacking = _lacking(environment, parts)
    stretch = _STRETCH if options.rehearse else 1.0
    well = run_parts(parts, processes, record, options.budget, lacking=lacking, stretch=stretch)
    text = markdown(record.read())
    (options.markdown or out / "gpu_check.md").write_text(text + "\n")
    print(f"\n{text}\n\nThe figures of every repeat are in {record.path}.")
    return 0 if well else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="launch/gpu_check.sh", description="Checks and measures on one GPU.")
    parser.add_argument("--rehearse", action="store_true", help="small shapes on the CPU: the code, not the figures")
    parser.add_argument("--model", help="folder of a small Llama for the parity check; default: the embedded miniature")
    parser.add_argument(
        "--wheels", help="folder of wheels of packages that are not installed; default: runs/gpu_check/wheels"
    )
    parser.add_argument("--only", help=f"parts to run, separated by commas: {', '.join(part.name for part in PARTS)}")
    parser.add_argument("--budget", type=float, default=_BUDGET, help="seconds for all parts")
    parser.add_argument(
        "--markdown", type=pathlib.Path, help="file for the table; default: gpu_check.md beside the JSON"
    )
    return parser.parse_args()


def _chosen(only: str | None) -> list[Part]:
    """The parts to run, in the order of `PARTS`.

    Raises:
      BadInput: a name is no part.
    """
    known = [part.name for part in PARTS]
    wanted = only.split(",") if only else known
    for name in wanted:
        if name not in known:
            raise BadInput(f"--only: {name!r} is not a part; choose from {', '.join(known)}")
    return [part for part in PARTS if part.name in wanted]


def _command_line(options: argparse.Namespace) -> str:
    """The command line for the record, without paths of files."""
    flags = ["--rehearse"] if options.rehearse else []
    flags += [f"--only={options.only}"] if options.only else []
    return " ".join(["launch/gpu_check.sh", *flags])


def _environment(rehearse: bool) -> dict[str, str]:
    """Environment of the parts. JAX does not preallocate, so that torch finds memory in the part that uses both."""
    folders = [str(_ROOT), str(_PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(folders),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.94",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    }
    if rehearse:
        return {**environment, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    # A later repeat or part reads programs that were compiled before from this cache.
    return {**environment, "JAX_COMPILATION_CACHE_DIR": str(_PLACE / "programs")}


def _lacking(environment: dict[str, str], parts: Sequence[Part]) -> frozenset[str]:
    """Packages that the parts need and that are not installed."""
    script = "import importlib.util, sys; print(*(name for name in sys.argv[1:] if not importlib.util.find_spec(name)))"
    names = sorted({name for part in parts for name in part.packages})
    command = [sys.executable, "-c", script, *names]
    return frozenset(subprocess.run(command, env=environment, capture_output=True, text=True).stdout.split())


if __name__ == "__main__":
    sys.exit(main())
