"""The same training steps by third_party/peers/train_with_transformers.py, in a process without JAX arrays."""

import importlib.util
import pathlib
from collections.abc import Mapping
from typing import Any

from clinmerge_jax.benchmark.gpu_check import steps
from clinmerge_jax.benchmark.gpu_check.record import Reporter

_PEER = pathlib.Path(__file__).parents[3] / "third_party" / "peers" / "train_with_transformers.py"


def measure(settings: Mapping[str, Any], report: Reporter) -> None:
    """Measures tokens per second and MFU of a step; see `parts.PARTS` for the settings."""
    spec = importlib.util.spec_from_file_location(_PEER.stem, _PEER)
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    whose = "transformers and PEFT" if settings["rank"] else "transformers"
    name, rates, shares = steps.name(settings), [], []
    for found, kept in steps.repeats(program.train, settings):
        rates.append(steps.tokens(settings) / found["seconds"])
        shares.append(steps.mfu(settings, found))
        report.against_ours(
            f"{name}, {whose}" + ("" if kept == "none" else ", layers checkpointed"), rates, "tokens/s", name,
            remat=kept, peak_bytes=found["peak_bytes"], mfu=shares, product_flops=found["product_flops"],
        )  # fmt: skip
