"""Figures that compare two parents, and their base if there is one: distances, angles, signs, by tensor and by group.

`inspection` measures them. A group's tensors count as one concatenated tensor, and their sums are added with one
rounding (`math.fsum`).
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from clinmerge_jax.merging.diagnostics import module_of
from clinmerge_jax.merging.methods import PairTotals
from clinmerge_jax.merging.recipes.schedule import layer_of

_SHORT_MODULES = {
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.o_proj": "o",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
    "input_layernorm": "norms",
    "post_attention_layernorm": "norms",
}
_OUTSIDE = ("embed_tokens", "norm", "lm_head")  # modules outside the layers

Pair = tuple[str, str]  # (B, A): how B differs from A
PARENTS: Pair = ("clinical", "instruct")
FROM_BASE: tuple[Pair, Pair] = (("clinical", "base"), ("instruct", "base"))


def pairs_of(roles: Iterable[str]) -> tuple[Pair, ...]:
    """The pairs that are compared: the parents, and each with the base where `roles` has one."""
    return (PARENTS, *FROM_BASE) if "base" in roles else (PARENTS,)


def pair_name(pair: Pair) -> str:
    """The name of a pair, such as `clinical vs instruct`."""
    return f"{pair[0]} vs {pair[1]}"


@dataclasses.dataclass(frozen=True)
class PairMeasures:
    """How B differs from A, over one tensor or several concatenated ones.

    Attributes:
      totals: |A|^2, |B|^2 and |A - B|^2.
      entries: number of entries of the tensors.
      changed: number of entries that differ.
      top_squared: the part of |A - B|^2 in the entries that differ most, a fixed share of each tensor's entries.
    """

    totals: PairTotals
    entries: int
    changed: int
    top_squared: float

    @property
    def relative_distance(self) -> float:
        """|B - A| / |A|; infinite where only A is zero."""
        return self.totals.relative_distance

    @property
    def cosine(self) -> float:
        """The cosine of A and B."""
        return self.totals.cosine

    @property
    def degrees(self) -> float:
        """The angle between A and B in degrees, to full precision where it is small."""
        a, b = math.sqrt(self.totals.a_squared), math.sqrt(self.totals.b_squared)
        if a * b == 0.0:
            return math.degrees(math.acos(self.cosine))
        chord_squared = max(0.0, self.totals.difference_squared - (a - b) ** 2) / (a * b)
        return math.degrees(2 * math.asin(min(1.0, math.sqrt(chord_squared) / 2)))

    @property
    def z(self) -> float:
        """The cosine divided by its standard deviation for random directions, 1 / sqrt(entries)."""
        return self.cosine * math.sqrt(self.entries)

    @property
    def top_share(self) -> float | None:
        """The share of the squared change that lies in the top entries; None where nothing changed."""
        if self.totals.difference_squared == 0.0:
            return None
        return min(1.0, self.top_squared / self.totals.difference_squared)


@dataclasses.dataclass(frozen=True)
class Measures:
    """All figures of one tensor, or of several concatenated ones.

    Attributes:
      pairs: figures by pair, the parents first.
      tensors: number of tensors.
      collinear: number of tensors that slerp merges along the straight line, as linear does.
      signs_compared: with a base, entries that both parents changed; without, entries in which both are not zero.
      signs_agree: those of them in which the two changes, or the two weights, have the same sign.
    """

    pairs: Mapping[Pair, PairMeasures]
    tensors: int
    collinear: int
    signs_compared: int
    signs_agree: int

    @property
    def entries(self) -> int:
        """Number of entries."""
        return self.pairs[PARENTS].entries

    @property
    def sign_agreement(self) -> float | None:
        """The share of equal signs; None where none could be compared."""
        return self.signs_agree / self.signs_compared if self.signs_compared else None

    @property
    def _changes(self) -> PairTotals | None:
        """Totals of the two changes from the base, whose difference is clinical - instruct."""
        if len(self.pairs) == 1:
            return None
        squared = [self.pairs[pair].totals.difference_squared for pair in (*FROM_BASE, PARENTS)]
        return PairTotals(*squared) if squared[0] and squared[1] else None

    @property
    def change_cosine(self) -> float | None:
        """The cosine of clinical - base and instruct - base; None without a base or where one of them is zero."""
        return self._changes.cosine if self._changes else None

    @property
    def carried(self) -> float | None:
        """The part of instruct's change that clinical has too: <C, I> / |I|^2 of changes C, I; None as above."""
        changes = self._changes
        return changes.cosine * math.sqrt(changes.a_squared / changes.b_squared) if changes else None

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable record; undefined and infinite values are None."""
        record: dict[str, Any] = {
            "entries": self.entries,
            "pairs": {
                pair_name(pair): {
                    "relative_distance": one.relative_distance if math.isfinite(one.relative_distance) else None,
                    "cosine": one.cosine,
                    "z": one.z,
                    "collinear": one.totals.collinear,
                    "changed": one.changed,
                    "top_share": one.top_share,
                }
                for pair, one in self.pairs.items()
            },
        }
        cosine = self.change_cosine
        if len(self.pairs) > 1:
            record["change_cosine"] = cosine
            record["change_z"] = None if cosine is None else cosine * math.sqrt(self.entries)
        return {**record, "sign_agreement": self.sign_agreement, "signs_compared": self.signs_compared}


def combine(measures: Iterable[Measures]) -> Measures:
    """The figures of several tensors as one concatenated tensor.

    Args:
      measures: at least one, all of the same models.
    """
    measures = list(measures)
    pairs = {}
    for pair in measures[0].pairs:
        parts = [one.pairs[pair] for one in measures]
        columns = zip(*(dataclasses.astuple(part.totals) for part in parts))
        pairs[pair] = PairMeasures(
            totals=PairTotals(*map(math.fsum, columns)),
            entries=sum(part.entries for part in parts),
            changed=sum(part.changed for part in parts),
            top_squared=math.fsum(part.top_squared for part in parts),
        )
    return Measures(
        pairs,
        tensors=sum(one.tensors for one in measures),
        collinear=sum(one.collinear for one in measures),
        signs_compared=sum(one.signs_compared for one in measures),
        signs_agree=sum(one.signs_agree for one in measures),
    )


@dataclasses.dataclass(frozen=True)
class TensorInspection:
    """The figures of one tensor."""

    name: str
    shape: tuple[int, ...]
    measures: Measures

    @property
    def layer(self) -> int | None:
        """The tensor's layer; None for embeddings, the final norm and the head."""
        return layer_of(self.name)

    @property
    def module(self) -> str:
        """`q`, `gate`, `norms`, ... in the layers of a Llama, the module's own name elsewhere."""
        module = module_of(self.name)
        return module if self.layer is None else _SHORT_MODULES.get(module, module)

    @property
    def is_layer_matrix(self) -> bool:
        """Whether it counts in the lineage verdict: norms, biases and embeddings do not."""
        return self.layer is not None and len(self.shape) == 2

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable record."""
        place = {"name": self.name, "module": self.module, "layer": self.layer, "shape": list(self.shape)}
        return {**place, **self.measures.to_json()}


def in_display_order(inspections: Iterable[TensorInspection]) -> list[TensorInspection]:
    """Sorts: q, k, v, o, gate, up, down, norms, others of layers; then embeddings, final norm, head, and the rest."""
    order = [*dict.fromkeys(_SHORT_MODULES.values()), *_OUTSIDE]

    def key(one: TensorInspection) -> tuple[bool, int]:
        return one.layer is None, order.index(one.module) if one.module in order else len(order)

    return sorted(inspections, key=key)


def group(inspections: Iterable[TensorInspection], by: Callable[[TensorInspection], Any]) -> dict[Any, Measures]:
    """The figures of each group of tensors, in order of first appearance."""
    groups: dict[Any, list[Measures]] = {}
    for one in inspections:
        groups.setdefault(by(one), []).append(one.measures)
    return {key: combine(members) for key, members in groups.items()}
