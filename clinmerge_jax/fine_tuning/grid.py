"""Expand the config of a grid into the configs of its runs."""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from clinmerge_jax.checkpoint.output import result_path
from clinmerge_jax.errors import BadInput

# Fields that depend on one run's validation losses during training; every run of a grid trains to its last step.
_ONE_BY_ONE = {"validate_every": 0, "patience": 0, "select": "last"}
_LARGEST = 2**32 - 1  # the largest seed of JAX's random keys


def run_configs(config: ConfigDict) -> dict[str, ConfigDict]:
    """The `sft` config of each run of a grid, by run name; the name is the run's folder below the grid's.

    Args:
      config: config of the job `sft_grid`.

    Raises:
      BadInput: a field is wrong, or not supported in a grid.
    """
    for field, only in _ONE_BY_ONE.items():
        if config[field] != only:
            raise BadInput(
                f"config.{field}: is {config[field]}, but a grid trains every run to its last step; leave it at {only},"
                " or train the runs one by one with --config=configs/sft.py"
            )
    for axis in ("fsdp", "tensor"):
        if config.mesh[axis] not in (0, 1):
            raise BadInput(
                f"config.mesh.{axis}: is {config.mesh[axis]}, but each device of a grid trains whole runs; leave it at"
                " 0, or train the runs one by one with --config=configs/sft.py"
            )
    seeds = _values(config, "seeds", int)
    shots = _values(config, "shots", int)
    rates = _values(config, "learning_rates", float) if config.grid.learning_rates else [config.learning_rate]
    root = result_path(config.output)
    shared = {name: value for name, value in config.to_dict().items() if name != "grid"}
    found = {}
    for count in shots:
        for rate in rates:
            for seed in seeds:
                middle = f"learning-rate-{rate}/" if len(rates) > 1 else ""
                name = f"shots-{count or 'all'}/{middle}seed-{seed}"
                own = {"job": "sft", "output": str(root / name), "shots": count, "seed": seed, "learning_rate": rate}
                found[name] = ConfigDict({**shared, **own})
    return found


def _values(config: ConfigDict, field: str, kind: type) -> Sequence[Any]:
    values = list(config.grid[field])
    if not values or any(isinstance(value, bool) or not isinstance(value, (int, kind)) for value in values):
        raise BadInput(f"config.grid.{field}: is {config.grid[field]!r}; give numbers such as 0,1,2")
    if len(set(values)) < len(values) or min(values) < 0 or max(values) > _LARGEST:
        raise BadInput(
            f"config.grid.{field}: is {config.grid[field]!r}; give each number once, from 0 to {_LARGEST} at most"
        )
    return [kind(value) for value in values]
