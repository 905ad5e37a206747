"""What to merge and how: models, method, and coefficients over depth and module."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from absl import logging

from clinmerge_jax.checkpoint.safetensors import DTYPES
from clinmerge_jax.errors import BadInput
from clinmerge_jax.merging.methods import METHODS

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_FALLBACK = "*"


def layer_of(name: str) -> int | None:
    """The layer that a tensor belongs to; None for embeddings, the final norm and the head."""
    match = _LAYER.search(name)
    return int(match.group(1)) if match else None


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A coefficient over depth and module.

    Attributes:
      clauses: (filter, gradient) pairs. The first filter that is part of a tensor's name wins; "*"
        fits every tensor. A gradient's values lie evenly over the depth p = layer / (layers - 1), with
        straight lines between; tensors outside the layers take p = 0, the gradient's first value.
      field: where it came from, for messages.
    """

    clauses: tuple[tuple[str, tuple[float, ...]], ...]
    field: str

    @classmethod
    def parse(cls, value: Any, field: str) -> "Schedule":
        """Reads a number, a list of numbers, or text: `0.5`, `0,.5,1` or `self_attn=0,1; mlp=1,0; 0.5`.

        Raises:
          BadInput: anything else, or a filter that is given twice.
        """
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return cls(((_FALLBACK, (_finite(value, field),)),), field)
        if isinstance(value, (list, tuple)) and value:
            return cls(((_FALLBACK, tuple(_finite(item, field) for item in value)),), field)
        if not isinstance(value, str) or not value.strip():
            raise BadInput(f"{field}: is {value!r}; give a number, or a comma list over depth such as 0,0.5,1")
        clauses = []
        for clause in value.split(";"):
            name, equals, numbers = clause.rpartition("=")
            name = name.strip() if equals else _FALLBACK
            if not name:
                raise BadInput(f"{field}: {clause.strip()!r} has no filter before '='; write filter=numbers")
            if clauses and clauses[-1][0] == _FALLBACK:
                raise BadInput(f"{field}: {clause.strip()!r} comes after a value that fits every tensor; put that last")
            if name in (known for known, _ in clauses):
                raise BadInput(f"{field}: filter {name!r} is given twice in {value!r}; keep one of the two")
            clauses.append((name, tuple(_finite(number, field) for number in numbers.split(","))))
        return cls(tuple(clauses), field)

    def at(self, name: str, layers: int) -> float:
        """The value for one tensor of a model with that many layers.

        Raises:
          BadInput: no filter fits the tensor.
        """
        gradient = next((numbers for text, numbers in self.clauses if text == _FALLBACK or text in name), None)
        if gradient is None:
            raise BadInput(f"{self.field}: no filter fits tensor {name}; add a value without filter at the end")
        layer = layer_of(name)
        depth = layer / (layers - 1) if layer is not None and layers > 1 else 0.0
        position = min(max(depth, 0.0), 1.0) * (len(gradient) - 1)
        lower = min(int(position), len(gradient) - 2) if len(gradient) > 1 else 0
        share = position - lower
        if share == 0.0:
            return gradient[lower]
        return gradient[lower] + share * (gradient[lower + 1] - gradient[lower])

    def check_filters(self, names: Iterable[str]) -> None:
        """Refuses a filter that no tensor takes its value from, which would silently do nothing.

        Raises:
          BadInput: naming the filter.
        """
        names = list(names)
        for index, (text, _) in enumerate(self.clauses):
            earlier = [other for other, _ in self.clauses[:index]]
            if text == _FALLBACK:
                continue
            if not any(text in name and not any(other in name for other in earlier) for name in names):
                reason = "is hidden by an earlier one" if any(text in name for name in names) else "fits no tensor"
                raise BadInput(f"{self.field}: filter {text!r} {reason}; for a Llama use self_attn, mlp or norm")

    def complement(self) -> "Schedule":
        """1 - value, everywhere."""
        return Schedule(tuple((text, tuple(1.0 - x for x in numbers)) for text, numbers in self.clauses), self.field)

    def __str__(self) -> str:
        parts = []
        for text, numbers in self.clauses:
            listed = ",".join(repr(number).removesuffix(".0") for number in numbers)
            parts.append(listed if text == _FALLBACK else f"{text}={listed}")
        return "; ".join(parts)


def _finite(value: Any, field: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        shown = value.strip() if isinstance(value, str) else value
        raise BadInput(f"{field}: {shown!r} is not a number; give a number, or a comma list over depth such as 0,0.5,1")
    return number


@dataclasses.dataclass(frozen=True)
class Source:
    """One model of a Recipe: where it is, and its own parameters."""

    model: str
    parameters: Mapping[str, Schedule] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A whole merge.

    Attributes:
      method: a name in `METHODS`.
      sources: the models; the first one is the reference of the statistics, for slerp t = 0.
      parameters: the method's own parameters.
      dtype: of the result: "float32", "bfloat16", "float16", or "" for that of the first source.
    """

    method: str
    sources: tuple[Source, ...]
    parameters: Mapping[str, Schedule] = dataclasses.field(default_factory=dict)
    dtype: str = ""

    def __post_init__(self):
        if self.method not in METHODS:
            raise BadInput(f"config.method: {self.method!r} is unknown; there are {', '.join(METHODS)}")
        method = METHODS[self.method]
        if self.dtype and self.dtype not in {str(dtype) for dtype in DTYPES.values()}:
            choices = ", ".join(str(dtype) for dtype in DTYPES.values())
            raise BadInput(f"config.dtype: {self.dtype!r} is unknown; there are {choices}, or leave it empty")
        if len(self.sources) < 2 or len(self.sources) > (method.max_sources or len(self.sources)):
            raise BadInput(f"config.method: {self.method} does not merge {len(self.sources)} models")
        for name in self.parameters:
            if name not in method.parameters:
                raise BadInput(f"config.{name}: {self.method} has no such parameter; it has {_list(method.parameters)}")
        for name, default in method.parameters.items():
            if default is None and name not in self.parameters:
                raise BadInput(f"config.{name}: is missing; {self.method} needs it")
        for source in self.sources:
            for name in set(source.parameters) ^ set(method.source_parameters):
                problem = "is missing" if name in method.source_parameters else "is no parameter of a model"
                raise BadInput(f"{source.model}: {name} {problem} in method {self.method}")

    def schedules(self) -> list[Schedule]:
        """Every schedule of the recipe."""
        return [*self.parameters.values(), *(value for s in self.sources for value in s.parameters.values())]

    def values_at(self, name: str, layers: int) -> tuple[dict[str, float], list[dict[str, float]]]:
        """The method's parameters and each source's, for one tensor."""
        values = {
            key: self.parameters[key].at(name, layers) if key in self.parameters else default
            for key, default in METHODS[self.method].parameters.items()
        }
        per_source = [{key: value.at(name, layers) for key, value in s.parameters.items()} for s in self.sources]
        return values, per_source

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable description."""
        return {
            "method": self.method,
            "models": [
                {"model": s.model, "parameters": {key: str(value) for key, value in s.parameters.items()}}
                for s in self.sources
            ],
            "parameters": {key: str(value) for key, value in self.parameters.items()},
            "dtype": self.dtype,
        }


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def interpolation(method: str, instruct: str, clinical: str, t: Any, dtype: str = "") -> Recipe:
    """The two-parent Recipe of the paper: t = 0 is the instruct model, t = 1 the clinical one.

    Raises:
      BadInput: t is malformed or the method unknown.
    """
    schedule = Schedule.parse(t, "config.t")
    beyond = [number for _, numbers in schedule.clauses for number in numbers if not 0.0 <= number <= 1.0]
    if beyond:
        logging.warning("config.t: %g lies outside 0..1, so the merge extrapolates beyond a parent", beyond[0])
    if method == "linear":
        sources = (
            Source(instruct, {"weight": schedule.complement()}),
            Source(clinical, {"weight": schedule}),
        )
        return Recipe(method, sources, dtype=dtype)
    return Recipe(method, (Source(instruct), Source(clinical)), {"t": schedule}, dtype)
