"""Whether models descend from one another, judged by the cosines and distances of their layers' matrices."""

import dataclasses
import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from clinmerge_jax.merging.inspection.measures import (
    FROM_BASE,
    PARENTS,
    Measures,
    Pair,
    TensorInspection,
    combine,
    pair_name,
)

# The cosine of two weight matrices of one training run and its descendants stays near 1. That of matrices from two
# random starts is near 0, with a standard deviation of 1 / sqrt(entries); so is that of a model and a copy with
# permuted neurons. Norm weights are not informative, because all are near 1.
FAMILY_COSINE = 0.5  # median over the layers' matrices from which two models count as one family
UNRELATED_COSINE = 0.1  # below it they count as unrelated; between the two, as doubtful
_MARGIN = 1.05  # distances within 5 % of each other count as equal
# The part of instruct's change that clinical has too. It is near 1 if clinical was trained from instruct, however far
# it moved from there, and near 0 if it was trained from the base, because training on other data adds a change that is
# nearly orthogonal. Distances are less informative: they are close where clinical moved much further than instruct.
_CARRIED = 0.75
_NOT_CARRIED = 0.25


@dataclasses.dataclass(frozen=True)
class Lineage:
    """Whether the models descend from one another, judged by the matrices of their layers.

    Attributes:
      matrices: the figures of all these matrices as one concatenated tensor.
      medians: the median of the matrices' cosines, by pair.
    """

    matrices: Measures
    medians: Mapping[Pair, float]

    def verdict(self, pair: Pair) -> str:
        """`one family`, `doubtful` or `unrelated`, by the median cosine and the two thresholds above."""
        median = self.medians[pair]
        if median >= FAMILY_COSINE:
            return "one family"
        return "doubtful" if median >= UNRELATED_COSINE else "unrelated"

    @property
    def has_base(self) -> bool:
        """Whether a base was given."""
        return len(self.medians) > 1

    @property
    def nearer(self) -> str | None:
        """Which of `base` and `instruct` clinical is nearer to, or `neither`; None if not all three are one family."""
        if not self.has_base or any(self.verdict(pair) != "one family" for pair in self.medians):
            return None
        to_base, to_instruct = self._distances
        if to_base * _MARGIN < to_instruct:
            return "base"
        return "instruct" if to_instruct * _MARGIN < to_base else "neither"

    @property
    def _distances(self) -> tuple[float, float]:
        """Distances of clinical from base and from instruct, both relative to the base's norm, to be comparable."""
        to_base, to_instruct = (self.matrices.pairs[pair].totals for pair in (FROM_BASE[0], PARENTS))
        norm = math.sqrt(to_base.a_squared)
        return math.sqrt(to_base.difference_squared) / norm, math.sqrt(to_instruct.difference_squared) / norm

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable record."""
        return {
            "verdicts": {pair_name(pair): self.verdict(pair) for pair in self.medians},
            "median_cosines": {pair_name(pair): median for pair, median in self.medians.items()},
            "clinical_is_nearer_to": self.nearer,
            "instruct_change_carried_by_clinical": self.matrices.carried,
            **self.matrices.to_json(),
        }

    def text(self) -> str:
        """The verdict in one paragraph, with its numbers."""
        parts = [self._relation(pair) for pair in self.medians]
        nearer = self.nearer
        if not self.has_base and self.verdict(PARENTS) == "one family":
            parts.append("To see what clinical was trained from, give the base of both as config.base.")
        if nearer is not None:
            parts.append(self._nearness(nearer))
        return " ".join(parts)

    def _relation(self, pair: Pair) -> str:
        verdict, one = self.verdict(pair), self.matrices.pairs[pair]
        b, a = pair
        said = {
            "one family": f"{b} and {a} are of one family",
            "doubtful": f"Whether {b} and {a} descend from one model is doubtful",
            "unrelated": f"{b} and {a} look unrelated, as if trained from different random starts",
        }[verdict]
        means = {
            "one family": "",
            "doubtful": " Evaluate a merge of them before trusting it.",
            "unrelated": " Merging their weights would be meaningless.",
        }[verdict]
        return (
            f"{said[0].upper()}{said[1:]}: the median cosine of {self.matrices.tensors} layer matrices is"
            f" {self.medians[pair]:.4f}, and over all of them it is {one.cosine:.4f} (chance gives 0 with standard"
            f" deviation {1 / math.sqrt(one.entries):.1g}: z = {one.z:.1f}); relative distance"
            f" {one.relative_distance:.4f}.{means}"
        )

    def _nearness(self, nearer: str) -> str:
        to_base, to_instruct = self._distances
        numbers = f"(from base {to_base:.4f}, from instruct {to_instruct:.4f} of the base's norm)"
        cosine, carried = self.matrices.change_cosine, self.matrices.carried
        said = {
            "base": f"Clinical is nearer to base than to instruct {numbers}",
            "instruct": f"Clinical is nearer to instruct than to base {numbers}",
            "neither": f"Clinical is about as far from base as from instruct {numbers}",
        }[nearer]
        if cosine is None:
            return f"{said}; one of the two has not changed from the base at all."
        if carried >= _CARRIED:
            reading = "as if it had been trained from instruct, or instruct from it"
        elif carried <= _NOT_CARRIED:
            reading = "as if it had been trained from the base and not from instruct"
        else:
            reading = "which does not show what it was trained from"
        return (
            f"{said}; the two changes from the base have cosine {cosine:.4f}, and clinical carries {carried:.0%} of"
            f" instruct's, {reading}."
        )


def lineage(inspections: Iterable[TensorInspection]) -> Lineage:
    """The lineage verdict; at least one of the tensors must be a matrix of a layer."""
    matrices = [one.measures for one in inspections if one.is_layer_matrix]
    medians = {pair: statistics.median(one.pairs[pair].cosine for one in matrices) for pair in matrices[0].pairs}
    return Lineage(combine(matrices), medians)
