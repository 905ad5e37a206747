"""Rows in the order of training, from grain: shuffled anew in every epoch, and able to go on from any step.

A micro-batches of a step, B rows of each, N rows in all, T tokens.
"""

import functools
import math

import grain
import jax
import numpy as np
from jax.sharding import Sharding

from clinmerge_jax.data.batch import Batch

_AHEAD = 2  # steps that are gathered while the device is busy with an earlier one
_WHOLE = 10_000  # grain mixes by whole numbers


def steps_of(rows: int, rows_per_step: int, epochs: float, steps: int = 0, replay: float = 0.0) -> int:
    """How many steps a run has: `steps` if that is given, else what it takes to see every row `epochs` times.

    Args:
      rows: how many there are to learn, without replayed ones.
      rows_per_step: in all micro-batches of all processes, with replayed ones.
      epochs: how often each is seen.
      steps: overrides the epochs, unless 0.
      replay: the share of rows that come from the replayed set.
    """
    return steps or max(1, math.ceil(round(epochs * rows / (rows_per_step * (1.0 - replay)), 6)))


def local_rows(sharding: Sharding, rows: int) -> slice:
    """Which of a micro-batch's B rows the devices of this process hold.

    Args:
      sharding: of an array [B].
      rows: B.

    Raises:
      ValueError: they are not next to one another.
    """
    held = {part.indices(rows)[:2] for (part,) in sharding.addressable_devices_indices_map((rows,)).values()}
    start, stop = min(held)[0], max(stop for _, stop in held)
    if sum(stop - start for start, stop in held) != stop - start:
        raise ValueError(f"this process holds rows {sorted(held)} of {rows}, which do not follow one another")
    return slice(start, stop)


def load(
    rows: Batch,
    steps: int,
    batch_size: int,
    accumulate: int = 1,
    seed: int = 0,
    local: slice = slice(None),
    replay: Batch | None = None,
    replay_share: float = 0.0,
) -> grain.DatasetIterator[Batch]:
    """Yields each step's Batch, [A, B, T].

    Every epoch is a permutation of the rows that follows from the seed and the epoch, and the next begins where the
    last one ends, within a batch too: no row is left out, and fewer rows than a batch takes are repeated in it. Which
    rows a step takes does not depend on how many processes or micro-batches share them. Replayed rows lie evenly among
    the others, so each step has its share of them, but for one row.

    `get_state()` of the iterator is a JSON object, the number of the next step, which `set_state` of another iterator
    over the same rows with the same arguments takes.

    Args:
      rows: what is learned, [N, T].
      steps: how many steps there are.
      batch_size: B, over all processes.
      accumulate: A.
      seed: of the order, 0 or more.
      local: which of a micro-batch's rows this process reads (`local_rows`); all by default.
      replay: rows of another set that are mixed in, [M, T].
      replay_share: the share that they have, over 0 and under 1.

    Raises:
      ValueError: that share is no such number.
    """
    count = len(rows.tokens)
    order = _shuffled(0, count, seed)
    if replay is not None:
        rows = jax.tree.map(lambda one, other: np.concatenate([one, other]), rows, replay)
        replayed = _shuffled(count, len(replay.tokens), seed)
        share = round(replay_share * _WHOLE)
        order = grain.MapDataset.mix([order, replayed], [_WHOLE - share, share])

    def gather(chosen: np.ndarray) -> Batch:
        chosen_AB = chosen.reshape(accumulate, batch_size)[:, local]
        return jax.tree.map(lambda leaf: leaf[chosen_AB], rows)

    batches = order.batch(accumulate * batch_size).slice(slice(0, steps)).map(gather)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_AHEAD)
    return iter(batches.to_iter_dataset(options))


def _shuffled(first: int, count: int, seed: int) -> grain.MapDataset[int]:
    """The places from `first`, in another order in every epoch.

    Not grain's own shuffle: with as few rows as a few-shot set has, it takes milliseconds for each (grain 0.2.18). The
    raw bits of a NumPy bit generator stay the same in all its versions.
    """

    @functools.lru_cache(maxsize=2)
    def epoch_order(epoch: int) -> np.ndarray:
        return np.argsort(np.random.Philox(key=[seed, epoch]).random_raw(count), kind="stable")

    def place(index: int, _: int) -> int:
        epoch, within = divmod(index, count)
        return first + int(epoch_order(epoch)[within])

    return grain.MapDataset.range(count).repeat().map_with_index(place)
