"""How much the parents differ, tensor by tensor and module by module."""

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from clinmerge_jax.merging.methods import PairTotals

_MODULE = re.compile(r"^(?:model\.)?(?:layers\.\d+\.)?(.*?)(?:\.(weight|bias))?$")


@dataclasses.dataclass(frozen=True)
class TensorDifference:
    """How one tensor differs between two parents, and the coefficients it was merged with."""

    name: str
    size: int
    totals: PairTotals
    coefficients: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable record; `from_json` reads it back."""
        return {
            "name": self.name,
            "size": self.size,
            "totals": dataclasses.astuple(self.totals),
            "cosine": self.totals.cosine,
            "relative_distance": distance if math.isfinite(distance := self.totals.relative_distance) else None,
            "coefficients": list(self.coefficients),
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "TensorDifference":
        """Reads a record written by `to_json`."""
        totals = PairTotals(*record["totals"])
        return cls(record["name"], record["size"], totals, tuple(record["coefficients"]))


def module_of(name: str) -> str:
    """The module a tensor belongs to, without its layer: `self_attn.q_proj`, `norm`, ..."""
    module, kind = _MODULE.match(name).groups()
    return f"{module}.bias" if kind == "bias" else module


@dataclasses.dataclass(frozen=True)
class ModuleDifference:
    """How all tensors of one module differ, over the layers.

    `relative_distance` and `cosine` treat the tensors as one concatenated vector; `lowest_cosine` is the
    smallest cosine of a single tensor; `collinear` counts tensors that slerp merges linearly.
    """

    module: str
    tensors: int
    size: int
    relative_distance: float
    cosine: float
    lowest_cosine: float
    collinear: int


def by_module(differences: Iterable[TensorDifference]) -> list[ModuleDifference]:
    """Groups tensors by module, in order of first appearance, with a last row for the whole model."""
    groups: dict[str, list[TensorDifference]] = {}
    for difference in differences:
        groups.setdefault(module_of(difference.name), []).append(difference)
    rows = [_summary(module, group) for module, group in groups.items()]
    return [*rows, _summary("all", [item for group in groups.values() for item in group])]


def _summary(module: str, group: Sequence[TensorDifference]) -> ModuleDifference:
    columns = zip(*(dataclasses.astuple(item.totals) for item in group))
    totals = PairTotals(*(math.fsum(column) for column in columns))
    return ModuleDifference(
        module=module,
        tensors=len(group),
        size=sum(item.size for item in group),
        relative_distance=totals.relative_distance,
        cosine=totals.cosine,
        lowest_cosine=min(item.totals.cosine for item in group),
        collinear=sum(item.totals.collinear for item in group),
    )
