"""Schedules of a coefficient over depth and module: numbers, gradients over layers, filters on tensor names."""

import dataclasses
import math
import re
from collections.abc import Iterable
from typing import Any

from absl import logging

from clinmerge_jax.errors import BadInput

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_FALLBACK = "*"


def layer_of(name: str) -> int | None:
    """The layer that a tensor belongs to; None for embeddings, the final norm and the head."""
    match = _LAYER.search(name)
    return int(match.group(1)) if match else None


def with_layer(name: str, layer: int) -> str:
    """The name of the same tensor in another layer."""
    match = _LAYER.search(name)
    return f"{name[: match.start(1)]}{layer}{name[match.end(1) :]}"


def depth_of(layer: int | None, layers: int) -> float:
    """Relative depth of a layer, 0 to 1; 0 outside the layers, 1 for a single layer (as in mergekit)."""
    if layer is None:
        return 0.0
    return layer / (layers - 1) if layers > 1 else 1.0


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A coefficient over depth and module.

    Attributes:
      clauses: (filter, gradient) pairs. The first filter that is part of a tensor's name wins; "*"
        matches every tensor. A gradient's values are spaced evenly over the depth p = layer / (layers - 1),
        with linear interpolation between; tensors outside the layers take p = 0, the gradient's first value.
      field: the name of the setting, for messages.
    """

    clauses: tuple[tuple[str, tuple[float, ...]], ...]
    field: str

    @classmethod
    def parse(cls, value: Any, field: str, kind: type = float) -> "Schedule":
        """Reads a number, a list of numbers, or text: `0.5`, `0,.5,1` or `self_attn=0,1; mlp=1,0; 0.5`.

        Args:
          value: the number, list or text.
          field: the name of the setting, for messages.
          kind: float, int for a whole number, bool for a switch (true or false, the same at every depth).

        Raises:
          BadInput: anything else, or a filter that is given twice.
        """
        if isinstance(value, (list, tuple)) and value:
            return cls(((_FALLBACK, _gradient(value, field, kind)),), field)
        if isinstance(value, (int, float)):
            return cls(((_FALLBACK, _gradient([value], field, kind)),), field)
        if not isinstance(value, str) or not value.strip():
            raise BadInput(f"{field}: is {value!r}; {_MENDS[kind]}")
        clauses = []
        for clause in value.split(";"):
            name, equals, numbers = clause.rpartition("=")
            name = name.strip() if equals else _FALLBACK
            if not name:
                raise BadInput(f"{field}: {clause.strip()!r} has no filter before '='; write filter=numbers")
            if clauses and clauses[-1][0] == _FALLBACK:
                raise BadInput(
                    f"{field}: {clause.strip()!r} comes after a value that matches every tensor; put that last"
                )
            if name in (known for known, _ in clauses):
                raise BadInput(f"{field}: filter {name!r} is given twice in {value!r}; keep one of the two")
            clauses.append((name, _gradient(numbers.split(","), field, kind)))
        return cls(tuple(clauses), field)

    @classmethod
    def from_mergekit(cls, value: Any, field: str, kind: type = float) -> "Schedule":
        """Reads a value of a mergekit recipe: a number or switch, a list over depth, or filters with such values.

        Filters that can never win are kept; `check_filters` reports them.

        Raises:
          BadInput: anything else.
        """
        items = value if isinstance(value, list) else [value]
        if not any(isinstance(item, dict) for item in items):
            return cls(((_FALLBACK, _gradient(items, field, kind)),), field)
        clauses = []
        for index, item in enumerate(items):
            place = f"{field}[{index}]" if isinstance(value, list) else field
            if not isinstance(item, dict) or "value" not in item:
                raise BadInput(
                    f"{place}: is {item!r} among filters; give each a value, and each except the last a filter"
                )
            for key in item:
                if key not in ("filter", "value"):
                    raise BadInput(f"{place}.{key}: is unknown; a filter has filter and value")
            text = _FALLBACK if item.get("filter") is None else item["filter"]
            if not isinstance(text, str) or not text:
                raise BadInput(f"{place}.filter: is {text!r}; give a part of tensor names, such as self_attn")
            numbers = item["value"] if isinstance(item["value"], list) else [item["value"]]
            clauses.append((text, _gradient(numbers, f"{place}.value", kind)))
        return cls(tuple(clauses), field)

    def to_mergekit(self, kind: type = float) -> Any:
        """The value that `from_mergekit` reads as this schedule."""

        def plain(numbers: tuple[float, ...]) -> Any:
            listed = [kind(number) for number in numbers]
            return listed[0] if len(listed) == 1 else listed

        if len(self.clauses) == 1 and self.clauses[0][0] == _FALLBACK:
            return plain(self.clauses[0][1])
        return [
            {**({} if text == _FALLBACK else {"filter": text}), "value": plain(numbers)}
            for text, numbers in self.clauses
        ]

    def before(self, other: "Schedule | None") -> "Schedule":
        """This schedule, and `other` where no filter of this one matches."""
        return self if other is None else Schedule(self.clauses + other.clauses, self.field)

    def at(self, name: str, layers: int) -> float:
        """The value for one tensor of a model with `layers` layers.

        Raises:
          BadInput: no filter matches the tensor.
        """
        value = self.value(name, depth_of(layer_of(name), layers))
        if value is None:
            raise BadInput(f"{self.field}: no filter matches tensor {name}; add a value without filter at the end")
        return value

    def value(self, name: str, depth: float) -> float | None:
        """The value for a tensor at a depth from 0 to 1; None where no filter matches."""
        gradient = next((numbers for text, numbers in self.clauses if text == _FALLBACK or text in name), None)
        if gradient is None:
            return None
        position = min(max(depth, 0.0), 1.0) * (len(gradient) - 1)
        lower = min(int(position), len(gradient) - 2) if len(gradient) > 1 else 0
        share = position - lower
        if share == 0.0:
            return gradient[lower]
        return gradient[lower] + share * (gradient[lower + 1] - gradient[lower])

    def check_filters(self, names: Iterable[str], *, refuse: bool = True) -> None:
        """Refuses a filter that would silently do nothing because no tensor takes its value from it.

        Args:
          names: the names of all tensors.
          refuse: False to warn instead.

        Raises:
          BadInput: naming the filter.
        """
        names = list(names)
        for index, (text, _) in enumerate(self.clauses):
            earlier = [other for other, _ in self.clauses[:index]]
            if _FALLBACK in earlier:
                problem = "comes after a value that matches every tensor"
            elif text == _FALLBACK or any(
                text in name and not any(other in name for other in earlier) for name in names
            ):
                continue
            else:
                problem = "is hidden by an earlier one" if any(text in name for name in names) else "matches no tensor"
            if refuse:
                raise BadInput(f"{self.field}: filter {text!r} {problem}; for a Llama use self_attn, mlp or norm")
            logging.warning("%s: filter %r %s, so it does nothing", self.field, text, problem)

    def complement(self) -> "Schedule":
        """The schedule of 1 - value."""
        return Schedule(tuple((text, tuple(1.0 - x for x in numbers)) for text, numbers in self.clauses), self.field)

    def __str__(self) -> str:
        parts = []
        for text, numbers in self.clauses:
            listed = ",".join(repr(number).removesuffix(".0") for number in numbers)
            parts.append(listed if text == _FALLBACK else f"{text}={listed}")
        return "; ".join(parts)


_MENDS = {
    float: "give a number, or a comma list over depth such as 0,0.5,1",
    int: "give a whole number",
    bool: "give true or false",
}


def _gradient(values: Iterable[Any], field: str, kind: type) -> tuple[float, ...]:
    values = list(values)
    if not values:
        raise BadInput(f"{field}: is an empty list; {_MENDS[kind]}")
    if kind is bool and len(values) > 1:
        raise BadInput(f"{field}: is a list, but a switch has one value at every depth; give true or false")
    return tuple(_number(value, field, kind) for value in values)


def _number(value: Any, field: str, kind: type) -> float:
    shown = value.strip() if isinstance(value, str) else value
    if kind is bool and isinstance(shown, str) and shown.lower() in ("true", "false"):
        return float(shown.lower() == "true")
    try:
        number = math.nan if isinstance(value, bool) and kind is not bool else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        what = {float: "not a number", int: "not a whole number", bool: "neither true nor false"}[kind]
        raise BadInput(f"{field}: {shown!r} is {what}; {_MENDS[kind]}")
    if kind is bool and number not in (0.0, 1.0):
        raise BadInput(f"{field}: {shown!r} is neither true nor false; {_MENDS[kind]}")
    if kind is int and not number.is_integer():
        raise BadInput(f"{field}: {shown!r} is not a whole number; {_MENDS[kind]}")
    return number
