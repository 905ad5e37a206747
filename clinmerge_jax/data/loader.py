"""Batches in the order of training, from grain: shuffled anew in every epoch, and able to go on from any step.

A micro-batches of a step, B rows of each, N sequences in all, T tokens.
"""

import functools
import math
from collections.abc import Callable

import grain
import jax
import numpy as np
from jax.sharding import Sharding

from clinmerge_jax.data.batch import Batch
from clinmerge_jax.data.plan import Plan
from clinmerge_jax.data.sequences import Sequences

_AHEAD = 2  # steps that are gathered while the device is busy with an earlier one
_WHOLE = 10_000  # grain mixes by whole numbers
_EPOCHS = 10**9  # for ever: grain counts an endless set as sys.maxsize, which overflows in batches of one


def steps_of(sequences: int, batch_size: int, epochs: float, steps: int = 0, replay: float = 0.0) -> int:
    """How many steps a run has: `steps` if that is given, else what it takes to see every sequence `epochs` times.

    Args:
      sequences: how many there are to learn, without replayed ones.
      batch_size: sequences of a step, with replayed ones.
      epochs: how often each is seen.
      steps: overrides the epochs, unless 0.
      replay: the share of sequences that come from the replayed set.
    """
    return steps or max(1, math.ceil(round(epochs * sequences / (batch_size * (1.0 - replay)), 6)))


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


def order(count: int, seed: int = 0, replayed: int = 0, replay_share: float = 0.0) -> grain.MapDataset[int]:
    """The numbers of sequences in the order of training, without end.

    Every epoch is a permutation that follows from the seed and the epoch, and the next begins where the last one ends,
    within a batch too: none is left out, and fewer than a batch takes are repeated in it. Replayed ones lie evenly
    among the others, so each step has its share of them, but for one.

    Args:
      count: how many are learned: the numbers from 0.
      seed: of the order, 0 or more.
      replayed: how many of another set are mixed in: the numbers from `count`.
      replay_share: the share that they have, over 0 and under 1.

    Raises:
      ValueError: that share is no such number.
    """
    learned = _shuffled(0, count, seed)
    if not replayed:
        return learned
    share = round(replay_share * _WHOLE)
    return grain.MapDataset.mix([learned, _shuffled(count, replayed, seed)], [_WHOLE - share, share])


def load(
    sequences: Sequences,
    numbers: grain.MapDataset[int],
    plan: Plan,
    steps: int,
    batch_size: int,
    local: Callable[[int], slice] = lambda rows: slice(None),
) -> grain.DatasetIterator[Batch]:
    """Yields each step's Batch, [A, B, T], of the plan's shape for it.

    Which sequences a step takes does not depend on how many processes or micro-batches share them.

    `get_state()` of the iterator is a JSON object, the number of the next step, which `set_state` of another iterator
    with the same arguments takes.

    Args:
      sequences: of the run, replayed ones last.
      numbers: from `order`.
      plan: the shapes of the run.
      steps: how many there are.
      batch_size: sequences of a step, over all processes.
      local: which of B rows, over all processes, this one reads (`local_rows`); all by default.
    """

    def gather(chosen: np.ndarray) -> Batch:
        batch = plan.batch(sequences, chosen)
        mine = local(batch.tokens.shape[1])
        return jax.tree.map(lambda leaf: leaf[:, mine], batch)

    batches = numbers.batch(batch_size).slice(slice(0, steps)).map(gather)
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

    return grain.MapDataset.range(count).repeat(_EPOCHS).map_with_index(place)
