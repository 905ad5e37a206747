"""What to merge and how: models, method, and coefficients over depth and module."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from absl import logging

from clinmerge_jax.checkpoint.safetensors import DTYPES
from clinmerge_jax.errors import BadInput
from clinmerge_jax.merging.methods import METHODS, Base

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
    """Where a layer lies, from 0 to 1: 0 outside the layers, 1 for a single one (as mergekit has it)."""
    if layer is None:
        return 0.0
    return layer / (layers - 1) if layers > 1 else 1.0


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
        value = self.value(name, depth_of(layer_of(name), layers))
        if value is None:
            raise BadInput(f"{self.field}: no filter fits tensor {name}; add a value without filter at the end")
        return value

    def value(self, name: str, depth: float) -> float | None:
        """The value for a tensor at a depth from 0 to 1; None where no filter fits."""
        gradient = next((numbers for text, numbers in self.clauses if text == _FALLBACK or text in name), None)
        if gradient is None:
            return None
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
    """One model of a Recipe or a Slice.

    Attributes:
      model: where it is.
      parameters: its own.
      layers: first and end of the layers that are taken; None for all.
    """

    model: str
    parameters: Mapping[str, Schedule] = dataclasses.field(default_factory=dict)
    layers: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Slice:
    """Some layers of the result, and the layers of the sources that they are merged from.

    Attributes:
      sources: with ranges of equal length.
      parameters: of the method, before those of the recipe.
      base: replaces the recipe's here; "" keeps it.
    """

    sources: tuple[Source, ...]
    parameters: Mapping[str, Schedule] = dataclasses.field(default_factory=dict)
    base: str = ""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A whole merge.

    Attributes:
      method: a name in `METHODS`.
      sources: the models; the first one is the reference of the statistics, for slerp t = 0. Empty with `slices`.
      parameters: the method's own parameters, and such of each source that has none itself.
      dtype: of the result: "float32", "bfloat16", "float16", or "" for that of the first source.
      base: the base model, "" for none.
      slices: the result's layers in order, where they are not simply the sources'.
      seed: of random masks.
      leading: the model whose config.json, tokenizer and licence files the result takes; "" for the first.
    """

    method: str
    sources: tuple[Source, ...] = ()
    parameters: Mapping[str, Schedule] = dataclasses.field(default_factory=dict)
    dtype: str = ""
    base: str = ""
    slices: tuple[Slice, ...] = ()
    seed: int = 0
    leading: str = ""

    def __post_init__(self):
        if self.method not in METHODS:
            raise BadInput(f"config.method: {self.method!r} is unknown; there are {', '.join(METHODS)}")
        if self.dtype and self.dtype not in {str(dtype) for dtype in DTYPES.values()}:
            choices = ", ".join(str(dtype) for dtype in DTYPES.values())
            raise BadInput(f"config.dtype: {self.dtype!r} is unknown; there are {choices}, or leave it empty")
        if bool(self.sources) == bool(self.slices):
            raise BadInput("recipe: has both models and slices, or neither; give one of the two")
        for part in self.parts:
            self._check_part(part)
        self._check_parameters()

    def _check_part(self, part: Slice) -> None:
        method = METHODS[self.method]
        inputs, base = self.inputs(part)
        fewest, most = method.models
        count = len(inputs)
        beside = " beside the base" if base else ""
        if count < fewest or (most is not None and count > most):
            wanted = f"{fewest}" if fewest == most else f"{fewest} to {most}" if most else f"{fewest} or more"
            raise BadInput(f"config.method: {self.method} does not merge {count} models{beside}; give {wanted}")
        lengths = {source.layers[1] - source.layers[0] for source in part.sources if source.layers}
        if len(lengths) > 1:
            raise BadInput(
                f"recipe: a slice's layer_ranges have {' and '.join(map(str, sorted(lengths)))} layers; make them equal"
            )
        for source in inputs:
            for name in source.parameters:
                if name not in method.source_parameters:
                    where = "is one of the whole merge" if name in method.parameters else "is no parameter of a model"
                    raise BadInput(f"{source.model}: {name} {where} in method {self.method}")
            for name, default in method.source_parameters.items():
                given = (source.parameters, part.parameters, self.parameters)
                if default is None and not any(name in parameters for parameters in given):
                    raise BadInput(f"{source.model}: {name} is missing in method {self.method}")

    def _check_parameters(self) -> None:
        method = METHODS[self.method]
        known = {**method.parameters, **method.source_parameters}
        for parameters in (self.parameters, *(part.parameters for part in self.parts)):
            for name in parameters:
                if name not in known:
                    raise BadInput(f"config.{name}: {self.method} has no such parameter; it has {_list(known)}")
        for name, default in method.parameters.items():
            missing = any(name not in {**self.parameters, **part.parameters} for part in self.parts)
            if default is None and missing:
                raise BadInput(f"config.{name}: is missing; {self.method} needs it")

    @property
    def parts(self) -> tuple[Slice, ...]:
        """The slices; a recipe of whole models is one."""
        return self.slices or (Slice(self.sources),)

    @property
    def models(self) -> list[str]:
        """Where every model is, each once, in the order in which the recipe names them."""
        named = [source.model for part in self.parts for source in part.sources]
        bases = [self.base, *(part.base for part in self.parts)]
        return list(dict.fromkeys([*named, *(base for base in bases if base)]))

    def inputs(self, part: Slice) -> tuple[list[Source], Source | None]:
        """The models of a slice as its method takes them, and the base that changes are counted from.

        Raises:
          BadInput: the method needs a base and has none, or has one and no use for it.
        """
        base = part.base or self.base
        kind = METHODS[self.method].base
        sources = list(part.sources)
        if not base:
            if kind is Base.REQUIRED:
                raise BadInput(f"recipe: base_model is missing; {self.method} counts changes from it")
            return sources, None
        given = next((source for source in sources if source.model == base), None)
        if kind is Base.NONE:
            if given is None:
                raise BadInput(f"recipe: base_model {base} is not one of the models, and {self.method} has no base")
            return sources, None
        base_source = given or Source(base, layers=sources[0].layers)
        others = [source for source in sources if source is not base_source]
        if kind is Base.FIRST:
            return [base_source, *others], None
        return others, base_source

    def all_inputs(self, part: Slice) -> list[Source]:
        """The models of a slice as its method takes them, the base first where changes are counted from it."""
        sources, base = self.inputs(part)
        return sources if base is None else [base, *sources]

    def schedules(self) -> list[Schedule]:
        """Every schedule of the recipe."""
        levels = [self.parameters]
        for part in self.parts:
            levels += [part.parameters, *(source.parameters for source in part.sources)]
        return [schedule for level in levels for schedule in level.values()]

    def values(self, part: Slice, name: str, names: Sequence[str], depth: float) -> tuple[dict, list[dict]]:
        """The method's parameters and each input's, for one tensor.

        Args:
          part: the slice.
          name: of the tensor in the result.
          names: of the tensor in each of the inputs.
          depth: within the slice, 0 to 1.

        Raises:
          BadInput: a parameter that must be given has no filter that fits.
        """
        method = METHODS[self.method]

        def find(key: str, default: float | None, name: str, levels: Sequence[Mapping[str, Schedule]]) -> float:
            found = (level[key].value(name, depth) for level in levels if key in level)
            value = next((value for value in found if value is not None), default)
            if value is None:
                field = next(level[key].field for level in levels if key in level)
                raise BadInput(f"{field}: no filter fits tensor {name}; add a value without filter at the end")
            return value

        common = (part.parameters, self.parameters)
        values = {key: find(key, default, name, common) for key, default in method.parameters.items()}
        sources, _ = self.inputs(part)
        per_source = [
            {
                key: find(key, default, its_name, (source.parameters, *common))
                for key, default in method.source_parameters.items()
            }
            for source, its_name in zip(sources, names)
        ]
        return values, per_source

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable description."""

        def source(one: Source) -> dict[str, Any]:
            layers = {"layer_range": list(one.layers)} if one.layers else {}
            return {"model": one.model, **layers, "parameters": _texts(one.parameters)}

        described = {"method": self.method}
        if self.sources:
            described["models"] = [source(one) for one in self.sources]
        else:
            described["slices"] = [
                {
                    "sources": [source(one) for one in part.sources],
                    "parameters": _texts(part.parameters),
                    **({"base_model": part.base} if part.base else {}),
                }
                for part in self.slices
            ]
        if self.base:
            described["base_model"] = self.base
        described |= {"parameters": _texts(self.parameters), "dtype": self.dtype}
        return {**described, "seed": self.seed} if METHODS[self.method].random else described


def _texts(parameters: Mapping[str, Schedule]) -> dict[str, str]:
    return {key: str(value) for key, value in parameters.items()}


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
