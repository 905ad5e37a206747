"""Runs one benchmark: floor, ours and, where there is one, the peer. See clinmerge_jax/benchmark/README.md."""

from ml_collections import ConfigDict

from clinmerge_jax.benchmark import (
    decode,
    few_shot,
    grid,
    load,
    merge,
    merge_on_device,
    orbax,
    score,
    train,
)

_BENCHMARKS = {
    "merge": merge.run,
    "merge_on_device": merge_on_device.run,
    "load": load.run,
    "orbax": orbax.run,
    "decode": decode.run,
    "grid": grid.run,
    "train": train.run,
    "few_shot": few_shot.run,
    "score": score.run,
}


def run(config: ConfigDict) -> None:
    """Runs the benchmark that `config.what` names."""
    _BENCHMARKS[config.what](config)
