"""Process of one part: `python -m clinmerge_jax.benchmark.gpu_check.part NAME RECORD.json OPTIONS.json`.

Imports what the part needs, and begins when a line arrives on standard input.
"""

import importlib
import json
import pathlib
import sys

from clinmerge_jax.benchmark.gpu_check.parts import part_named
from clinmerge_jax.benchmark.gpu_check.record import Record, Reporter
from clinmerge_jax.errors import BadInput


def main() -> None:
    """Runs the part; OPTIONS.json has `rehearse`, `command`, and settings that override the part's."""
    name, path, options = sys.argv[1], pathlib.Path(sys.argv[2]), json.loads(pathlib.Path(sys.argv[3]).read_bytes())
    part = part_named(name)
    for package in part.packages:
        importlib.import_module(package)
    module, _, function = part.function.partition(":")
    measure = getattr(importlib.import_module(f"clinmerge_jax.benchmark.gpu_check.{module}"), function)
    if not sys.stdin.readline():
        return  # the driver has ended
    settings = {**part.settings, **(part.rehearsal if options["rehearse"] else {}), **options["settings"].get(name, {})}
    device = _device("jax" in part.packages, options["rehearse"])
    measure(settings, Reporter(Record(path), name, device, options["command"]))


def _device(with_jax: bool, rehearse: bool) -> str:
    """The kind of device that the part computes on.

    Raises:
      BadInput: it is not a GPU, and this is not a rehearsal.
    """
    kind, platform = _jax_device() if with_jax else _torch_device()
    if platform != "gpu" and not rehearse:
        raise BadInput(f"{'jax' if with_jax else 'torch'}: finds {kind}, not a GPU; install its CUDA build")
    return kind


def _jax_device() -> tuple[str, str]:
    import jax

    device = jax.devices()[0]
    return device.device_kind, device.platform


def _torch_device() -> tuple[str, str]:
    import torch

    return (torch.cuda.get_device_name(), "gpu") if torch.cuda.is_available() else ("cpu", "cpu")


if __name__ == "__main__":
    main()
