"""Load batches in training order with grain: reshuffled every epoch, resumable at any step.

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

_AHEAD = 2  # steps gathered while the device computes an earlier one
_WHOLE = 10_000  # grain takes integer mixing weights
_EPOCHS = 10**9  # in effect endless: the length of an endless grain set, sys.maxsize, overflows at batch size one


def steps_of(sequences: int, batch_size: int, epochs: float, steps: int = 0, replay: float = 0.0) -> int:
    """The number of steps of a run: `steps` if given, otherwise enough to see every sequence `epochs` times.

    Args:
      sequences: the number of sequences to learn, without replayed ones.
      batch_size: sequences per step, including replayed ones.
      epochs: how often each sequence is seen.
      steps: overrides the epochs, unless 0.
      replay: the share of sequences that come from the replayed set.
    """
    return steps or max(1, math.ceil(round(epochs * sequences / (batch_size * (1.0 - replay)), 6)))


def local_rows(sharding: Sharding, rows: int) -> slice:
    """The slice of a micro-batch's B rows that this process's devices hold.

    Args:
      sharding: the sharding of an array [B].
      rows: B.

    Raises:
      ValueError: the rows are not contiguous.
    """
    held = {part.indices(rows)[:2] for (part,) in sharding.addressable_devices_indices_map((rows,)).values()}
    start, stop = min(held)[0], max(stop for _, stop in held)
    if sum(stop - start for start, stop in held) != stop - start:
        raise ValueError(f"this process holds rows {sorted(held)} of {rows}, which are not consecutive")
    return slice(start, stop)


def order(count: int, seed: int = 0, replayed: int = 0, replay_share: float = 0.0) -> grain.MapDataset[int]:
    """An endless stream of sequence numbers in training order.

    Every epoch is a permutation determined by the seed and the epoch. The next epoch begins directly after the last,
    also within a batch: no sequence is dropped, and a set smaller than a batch repeats within it. Replayed sequences
    are spread evenly among the others, so each step has its share of them to within one.

    Args:
      count: the number of sequences to learn, which have the numbers from 0.
      seed: the seed of the order, 0 or more.
      replayed: the number of replayed sequences, which have the numbers from `count`.
      replay_share: the share of replayed sequences, over 0 and under 1.

    Raises:
      ValueError: the share is out of range.
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
    """Yields each step's Batch, [A, B, T], in the shape that the plan assigns to it.

    The sequences of a step do not depend on the number of processes or micro-batches.

    The iterator's `get_state()` is a JSON object that holds the number of the next step. `set_state` of another
    iterator with the same arguments accepts it.

    Args:
      sequences: the sequences of the run, replayed ones last.
      numbers: the training order, from `order`.
      plan: the batch shapes of the run.
      steps: the number of steps.
      batch_size: sequences per step, over all processes.
      local: maps B, over all processes, to the rows that this process reads (`local_rows`); all by default.
    """

    def gather(chosen: np.ndarray) -> Batch:
        batch = plan.batch(sequences, chosen)
        mine = local(batch.tokens.shape[1])
        return jax.tree.map(lambda leaf: leaf[:, mine], batch)

    batches = numbers.batch(batch_size).slice(slice(0, steps)).map(gather)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_AHEAD)
    return iter(batches.to_iter_dataset(options))


def _shuffled(first: int, count: int, seed: int) -> grain.MapDataset[int]:
    """The numbers from `first`, reshuffled in every epoch.

    grain's own shuffle is not used: on sets as small as few-shot sets it takes milliseconds per row (grain 0.2.18). The
    raw bits of a NumPy bit generator are the same in all NumPy versions.
    """

    @functools.lru_cache(maxsize=2)
    def epoch_order(epoch: int) -> np.ndarray:
        return np.argsort(np.random.Philox(key=[seed, epoch]).random_raw(count), kind="stable")

    def place(index: int, _: int) -> int:
        epoch, within = divmod(index, count)
        return first + int(epoch_order(epoch)[within])

    return grain.MapDataset.range(count).repeat(_EPOCHS).map_with_index(place)
