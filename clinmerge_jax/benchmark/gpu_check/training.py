"""Training steps with random weights, by this package."""

from collections.abc import Mapping
from typing import Any

from clinmerge_jax.benchmark.gpu_check import steps
from clinmerge_jax.benchmark.gpu_check.record import Reporter
from clinmerge_jax.benchmark.train_steps import train


def measure(settings: Mapping[str, Any], report: Reporter) -> None:
    """Measures tokens per second and MFU of a step; see `parts.PARTS` for the settings."""
    rates, shares = [], []
    for found, kept in steps.repeats(train, settings):
        rates.append(steps.tokens(settings) / found["seconds"])
        shares.append(steps.mfu(settings, found))
        report.add(
            steps.name(settings), rates, "tokens/s", ratios=shares, ratio_of="MFU", remat=kept,
            peak_bytes=found["peak_bytes"], first_seconds=found["first_seconds"], product_flops=found["product_flops"],
        )  # fmt: skip
