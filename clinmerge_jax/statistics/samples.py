"""Scores of systems on the same items, and statistics of them. S seeds, I items, C clusters of items, K counts."""

import dataclasses
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from clinmerge_jax.errors import BadInput

Statistic = Callable[[np.ndarray], np.ndarray]  # summed counts [..., K] to one number [...]


@dataclasses.dataclass(frozen=True)
class Sample:
    """Counts of every seed on every cluster of items, summed within the cluster.

    Attributes:
      counts_SCK: the counts that a statistic is computed from, once summed. Axes before S are separate studies.
      sizes_C: the number of items in each cluster.
    """

    counts_SCK: np.ndarray
    sizes_C: np.ndarray

    @property
    def seeds(self) -> int:
        """The number of seeds, S."""
        return self.counts_SCK.shape[-3]

    @property
    def clusters(self) -> int:
        """The number of clusters, C."""
        return self.counts_SCK.shape[-2]


def count_sample(*counts: np.ndarray, clusters: Sequence[Hashable] | None = None) -> Sample:
    """Gathers the counts of one or more systems on the same items.

    Args:
      *counts: the counts of each system, [..., S, I, K]. S = 1 for a system without seeds; it is paired with every seed
        of the others. Seeds are paired by position: seed s of one system belongs to seed s of another (the same
        examples, the same order).
      clusters: the cluster of each item, such as the encounter that it comes from. Without it every item is its own
        cluster.

    Returns:
      The sample, with the systems' counts one after another along K.

    Raises:
      BadInput: the shapes disagree, a value is not finite, or there are fewer than two clusters.
    """
    systems = [np.asarray(array, np.float64) for array in counts]
    seeds = {array.shape[-3] for array in systems} - {1}
    items = {array.shape[-2] for array in systems}
    if len(items) != 1 or len(seeds) > 1:
        shapes = ", ".join(str(array.shape[-3:-1]) for array in systems)
        raise BadInput(
            f"scores: (seeds, items) of {shapes} cannot be paired; give the same items, and the same seeds or one"
        )
    if not all(np.isfinite(array).all() for array in systems):
        raise BadInput("scores: a value is not finite; score every item of every seed")
    length = items.pop()
    names = range(length) if clusters is None else clusters
    if len(names) != length:
        raise BadInput(f"clusters: {len(names)} ids for {length} items; give one for each item")
    order = {name: index for index, name in enumerate(dict.fromkeys(names))}
    if len(order) < 2:
        raise BadInput("items: fewer than two independent ones (clusters); their spread cannot be estimated")
    cluster_I = np.array([order[name] for name in names])
    sizes_C = np.bincount(cluster_I)
    count = max(array.shape[-3] for array in systems)
    whole = np.concatenate([np.broadcast_to(a, (*a.shape[:-3], count, *a.shape[-2:])) for a in systems], axis=-1)
    starts_C = np.cumsum(sizes_C) - sizes_C
    sums_SCK = np.add.reduceat(whole[..., np.argsort(cluster_I, kind="stable"), :], starts_C, axis=-2)
    return Sample(sums_SCK, sizes_C)


def score_sample(*scores: np.ndarray, clusters: Sequence[Hashable] | None = None) -> Sample:
    """`count_sample` for scores [..., S, I] that are averaged: K = 2, the score and a 1 that counts the item."""
    counts = [np.stack([array, np.ones(np.shape(array))], axis=-1) for array in scores]
    return count_sample(*counts, clusters=clusters)


def mean(sums: np.ndarray) -> np.ndarray:
    """The mean score of a system in a `score_sample`."""
    return sums[..., 0] / sums[..., 1]


def difference(score: Statistic = mean) -> Statistic:
    """The score of a sample's first system minus that of its second.

    For example the gain over a parent. If the second is the model before training, a negative value is what was
    forgotten.
    """
    return lambda sums: np.subtract(*_both(score, sums))


def ratio(score: Statistic = mean) -> Statistic:
    """The score of a sample's first system over that of its second: what a merge retains of its better parent."""
    return lambda sums: np.divide(*_both(score, sums))


def _both(score: Statistic, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    count = sums.shape[-1] // 2
    return score(sums[..., :count]), score(sums[..., count:])
