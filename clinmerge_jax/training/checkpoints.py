"""Save and restore training states with Orbax: asynchronously, one folder per kept step."""

import math
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from clinmerge_jax import full_disk

_STATE, _POSITION, _LOSS = "state", "position", "loss"
_NEVER_BEST = sys.float_info.max


class Checkpoints:
    """The saved states of a run, from which it can resume.

    Args:
      folder: the parent of the steps' folders; created if missing. Incomplete folders of a killed process are removed.
      keep_last: how many of the latest states are kept.
      keep_best: whether the state with the lowest loss is kept too; the last of equals.
    """

    def __init__(self, folder: pathlib.Path, keep_last: int = 2, keep_best: bool = False):
        policies: list[Any] = [preservation_policy.LatestN(keep_last)]
        if keep_best:
            policies.append(preservation_policy.BestN(get_metric_fn=_closeness, n=1))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
            best_fn=_closeness,
            cleanup_tmp_directories=True,
        )
        self._manager = ocp.CheckpointManager(folder, options=options, item_names=(_STATE, _POSITION))

    def latest(self) -> int | None:
        """The last completely saved step; None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any, position: Mapping[str, Any], loss: float | None = None) -> None:
        """Copies the state from the devices and returns; writing continues in the background.

        Args:
          step: the number of steps taken.
          state: a tree of arrays.
          position: JSON-serialisable data, such as the state of the loader.
          loss: the validation loss, if it was measured after this step.

        Raises:
          OSError: the disk has too little free space.
        """
        full_disk.require(self._manager.directory, nbytes(state))
        items = ocp.args.Composite(
            **{_STATE: ocp.args.StandardSave(state), _POSITION: ocp.args.JsonSave(dict(position))}
        )
        self._manager.save(
            step,
            args=items,
            metrics={_LOSS: loss if loss is not None and math.isfinite(loss) else _NEVER_BEST},
            force=True,
        )

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """Restores the state and the position of a step.

        Args:
          step: a kept step.
          like: a tree of `jax.ShapeDtypeStruct`s with the shardings to restore to; they may differ from the saved ones.
        """
        items = ocp.args.Composite(**{_STATE: ocp.args.StandardRestore(like), _POSITION: ocp.args.JsonRestore()})
        restored = self._manager.restore(step, args=items)
        return restored[_STATE], restored[_POSITION]

    def wait(self) -> None:
        """Waits until everything is written to disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until everything is written to disk, and ends the background threads."""
        self._manager.close()


def nbytes(state: Any) -> int:
    """Number of bytes of a tree of arrays that this process writes."""
    leaves = [leaf for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array)]
    shards = [shard.data for leaf in leaves for shard in leaf.addressable_shards if shard.replica_id == 0]
    return sum(np.prod(shard.shape, dtype=int) * shard.dtype.itemsize for shard in shards)


def _closeness(metrics: Mapping[str, float]) -> float:
    """The negative loss, since Orbax keeps the largest value as the best."""
    return -metrics[_LOSS]


def abstract(state: Any) -> Any:
    """The shapes, dtypes and shardings of a tree of arrays, for `Checkpoints.restore`."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
