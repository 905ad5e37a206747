"""Merge recipes: models, method, and coefficients over depth and module."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from absl import logging

from clinmerge_jax.checkpoint.formats.safetensors import DTYPES
from clinmerge_jax.errors import BadInput
from clinmerge_jax.merging.methods import METHODS, Base
from clinmerge_jax.merging.recipes.schedule import Schedule


@dataclasses.dataclass(frozen=True)
class Source:
    """One model of a Recipe or a Slice.

    Attributes:
      model: its location.
      parameters: its own parameters.
      layers: first layer and end of the layers that are used; None for all.
    """

    model: str
    parameters: Mapping[str, Schedule] = dataclasses.field(default_factory=dict)
    layers: tuple[int, int] | None = None


@dataclasses.dataclass(frozen=True)
class Slice:
    """Some layers of the result, and the layers of the sources that they are merged from.

    Attributes:
      sources: the models, with layer ranges of equal length.
      parameters: parameters of the method, which take precedence over the recipe's.
      base: replaces the recipe's base in this slice; "" keeps it.
    """

    sources: tuple[Source, ...]
    parameters: Mapping[str, Schedule] = dataclasses.field(default_factory=dict)
    base: str = ""


@dataclasses.dataclass(frozen=True)
class TokenSource:
    """Where the embedding row of one token of the result comes from.

    Attributes:
      source: "" for the general rule, "zero", a model (its row of the same token), or (model, token or id there).
      force: whether models that have a row of their own take this row too.
    """

    source: str | tuple[str, str | int] = ""
    force: bool = False

    @property
    def model(self) -> str:
        """The model that `source` names; "" for none."""
        if isinstance(self.source, tuple):
            return self.source[0]
        return "" if self.source == "zero" else self.source

    def to_mergekit(self) -> dict[str, Any]:
        """The value in mergekit's format."""
        if isinstance(self.source, tuple):
            model, token = self.source
            key = "token" if isinstance(token, str) else "token_id"
            source: Any = {"kind": "model_token", "model": model, key: token}
        else:
            source = {"kind": "zero"} if self.source == "zero" else self.source
        return {**({"source": source} if source else {}), **({"force": True} if self.force else {})}

    def renamed(self, names: Mapping[str, str]) -> "TokenSource":
        """A copy with its model renamed."""
        if isinstance(self.source, tuple):
            model, token = self.source
            return dataclasses.replace(self, source=(names.get(model, model), token))
        return self if self.source == "zero" else dataclasses.replace(self, source=names.get(self.source, self.source))


@dataclasses.dataclass(frozen=True)
class VocabularyChoice:
    """Which tokens the result has, and which embedding row each of them gets.

    Attributes:
      source: "union", "base", a model or a folder with a tokenizer; "" where all models must agree.
      tokens: by token, the source of a row that does not follow the general rule.
      pad_to_multiple_of: the number of embedding rows is padded to a multiple of it; 0 for no padding.
      missing: the rule for a row that a model lacks; see `alignment.align`.
      cut_to_common: whether embeddings of different sizes may be cut to the smallest.
      special_rows: whether rows of special tokens that one model never trained are taken from the others.
    """

    source: str = ""
    tokens: Mapping[str, TokenSource] = dataclasses.field(default_factory=dict)
    pad_to_multiple_of: int = 0
    missing: str = "auto"
    cut_to_common: bool = False
    special_rows: bool = False


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A whole merge.

    Attributes:
      method: a name in `METHODS`.
      sources: the models. Statistics are relative to the first one; in slerp it is t = 0. Empty with `slices`.
      parameters: the method's own parameters, and source parameters for sources that do not set them.
      dtype: of the result: "float32", "bfloat16", "float16", or "" for that of the first source.
      base: the base model, "" for none.
      slices: the result's layers in order, where layers are stacked; empty for whole models.
      seed: seed of random masks.
      leading: the model whose config.json, tokenizer and licence files the result takes; "" for the first.
      vocabulary: which tokens the result has.
      chat_template: "auto" for the one that most models have, the name of one in `chat_templates`, Jinja text, or ""
        for the leading model's.
      file: the file it was read from, for messages; "" for the config.
    """

    method: str
    sources: tuple[Source, ...] = ()
    parameters: Mapping[str, Schedule] = dataclasses.field(default_factory=dict)
    dtype: str = ""
    base: str = ""
    slices: tuple[Slice, ...] = ()
    seed: int = 0
    leading: str = ""
    vocabulary: VocabularyChoice = VocabularyChoice()
    chat_template: str = ""
    file: str = ""

    def __post_init__(self):
        if self.method not in METHODS:
            raise BadInput(f"{self.place('method')}: {self.method!r} is unknown; choose from {', '.join(METHODS)}")
        if self.dtype and self.dtype not in {str(dtype) for dtype in DTYPES.values()}:
            choices = ", ".join(str(dtype) for dtype in DTYPES.values())
            raise BadInput(
                f"{self.place('dtype')}: {self.dtype!r} is unknown; choose from {choices}, or leave it empty"
            )
        if bool(self.sources) == bool(self.slices):
            raise BadInput(f"{self.file or 'recipe'}: has both models and slices, or neither; give one of the two")
        for part in self.parts:
            self._check_part(part)
        self._check_parameters()

    def place(self, key: str) -> str:
        """The name of a setting in messages: as in the config, or as in the recipe file."""
        if self.file:
            return f"{self.file}: {'merge_method' if key == 'method' else key}"
        return f"config.{'lambda_' if key == 'lambda' else key}"

    def _check_part(self, part: Slice) -> None:
        method = METHODS[self.method]
        inputs, base = self.inputs(part)
        fewest, most = method.models
        count = len(inputs)
        beside = " beside the base" if base else ""
        if count < fewest or (most is not None and count > most):
            wanted = f"{fewest}" if fewest == most else f"{fewest} to {most}" if most else f"{fewest} or more"
            raise BadInput(
                f"{self.place('method')}: {self.method} does not merge {count} models{beside}; give {wanted}"
            )
        lengths = sorted({source.layers[1] - source.layers[0] for source in part.sources if source.layers})
        if len(lengths) > 1:
            raise BadInput(
                f"{self.file or 'recipe'}: a slice's layer_ranges have {' and '.join(map(str, lengths))} layers; make"
                " them equal"
            )
        for source in inputs:
            for name in source.parameters:
                if name not in method.source_parameters:
                    where = (
                        "is one of the whole merge" if name in method.parameters else "is not a parameter of a model"
                    )
                    raise BadInput(
                        f"{self.place(name)}: of {source.model} {where} in method {self.method}; a model has"
                        f" {_list(method.source_parameters)}, the merge {_list(method.parameters)}"
                    )
            for name, default in method.source_parameters.items():
                given = (source.parameters, part.parameters, self.parameters)
                if default is None and not any(name in parameters for parameters in given):
                    raise BadInput(f"{self.place(name)}: is missing for {source.model}; {self.method} needs it")

    def _check_parameters(self) -> None:
        method = METHODS[self.method]
        known = {**method.parameters, **method.source_parameters}
        for parameters in (self.parameters, *(part.parameters for part in self.parts)):
            for name in parameters:
                if name not in known:
                    raise BadInput(
                        f"{self.place(name)}: {self.method} has no such parameter; it has"
                        f" {_list(self.place(one).removeprefix('config.') if not self.file else one for one in known)}"
                    )
        for name, default in method.parameters.items():
            missing = any(name not in {**self.parameters, **part.parameters} for part in self.parts)
            if default is None and missing:
                raise BadInput(f"{self.place(name)}: is missing; {self.method} needs it")

    @property
    def parts(self) -> tuple[Slice, ...]:
        """The slices; a recipe of whole models has one."""
        return self.slices or (Slice(self.sources),)

    @property
    def models(self) -> list[str]:
        """The location of every model, each once: the sources in the recipe's order, then bases."""
        named = [source.model for part in self.parts for source in part.sources]
        bases = [self.base, *(part.base for part in self.parts)]
        return list(dict.fromkeys([*named, *(base for base in bases if base)]))

    @property
    def leading_model(self) -> str:
        """The location of the model that `leading` names, or of the first."""
        return self.leading or self.models[0]

    def inputs(self, part: Slice) -> tuple[list[Source], Source | None]:
        """The models of a slice in the order its method takes them, and the base that changes are relative to, or None.

        Raises:
          BadInput: the method needs a base and the recipe gives none, or the method cannot use the base.
        """
        base = part.base or self.base
        kind = METHODS[self.method].base
        sources = list(part.sources)
        if not base:
            if kind is Base.REQUIRED:
                raise BadInput(
                    f"{self.place('base_model' if self.file else 'base')}: is missing; {self.method} measures changes"
                    " from it: give the base model"
                )
            return sources, None
        given = next((source for source in sources if source.model == base), None)
        if kind is Base.NONE:
            if given is None:
                raise BadInput(
                    f"{self.place('base_model' if self.file else 'base')}: {base} is not one of the models, and"
                    f" {self.method} has no base; add it to them, or leave it out"
                )
            return sources, None
        base_source = given or Source(base, layers=sources[0].layers)
        others = [source for source in sources if source is not base_source]
        if kind is Base.FIRST:
            return [base_source, *others], None
        return others, base_source

    def all_inputs(self, part: Slice) -> list[Source]:
        """The models of a slice in the order its method takes them; the base first where changes are relative to it."""
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
          name: the tensor's name in the result.
          names: the tensor's name in each of the inputs.
          depth: within the slice, 0 to 1.

        Raises:
          BadInput: no filter of a required parameter matches the tensor.
        """
        method = METHODS[self.method]

        def find(key: str, default: float | None, name: str, levels: Sequence[Mapping[str, Schedule]]) -> float:
            found = (level[key].value(name, depth) for level in levels if key in level)
            value = next((value for value in found if value is not None), default)
            if value is None:
                field = next(level[key].field for level in levels if key in level)
                raise BadInput(f"{field}: no filter matches tensor {name}; add a value without filter at the end")
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

    def to_mergekit(self) -> dict[str, Any]:
        """The recipe in mergekit's format, ready for YAML; settings that mergekit does not have are left out."""
        method = METHODS[self.method]
        kinds = {key: kind_of(default) for key, default in {**method.source_parameters, **method.parameters}.items()}

        def settings(parameters: Mapping[str, Schedule]) -> dict[str, Any]:
            plain = {key: schedule.to_mergekit(kinds[key]) for key, schedule in parameters.items()}
            return {"parameters": plain} if plain else {}

        def source(one: Source) -> dict[str, Any]:
            layers = {"layer_range": list(one.layers)} if one.layers else {}
            return {"model": one.model, **layers, **settings(one.parameters)}

        described: dict[str, Any] = {"merge_method": self.method}
        if self.base:
            described["base_model"] = self.base
        if self.sources:
            described["models"] = [source(one) for one in self.sources]
        else:
            described["slices"] = [
                {
                    "sources": [source(one) for one in part.sources],
                    **settings(part.parameters),
                    **({"base_model": part.base} if part.base else {}),
                }
                for part in self.slices
            ]
        described |= settings(self.parameters)
        if self.dtype:
            described |= {"dtype": "float32", "out_dtype": self.dtype}
        choice = self.vocabulary
        if choice.source and (choice.tokens or choice.pad_to_multiple_of):
            described["tokenizer"] = {"source": choice.source}
            if choice.tokens:
                described["tokenizer"]["tokens"] = {token: one.to_mergekit() for token, one in choice.tokens.items()}
            if choice.pad_to_multiple_of:
                described["tokenizer"]["pad_to_multiple_of"] = choice.pad_to_multiple_of
        elif choice.source:
            described["tokenizer_source"] = choice.source
        return {**described, **({"chat_template": self.chat_template} if self.chat_template else {})}

    def to_json(self) -> dict[str, Any]:
        """Everything that the result depends on, JSON-serialisable."""
        own = {
            "missing": self.vocabulary.missing,
            "cut_to_common": self.vocabulary.cut_to_common,
            "special_rows": self.vocabulary.special_rows,
            "leading": self.leading,
        }
        defaults = {"missing": "auto", "cut_to_common": False, "special_rows": False, "leading": ""}
        described = self.to_mergekit() | {key: value for key, value in own.items() if value != defaults[key]}
        return {**described, "seed": self.seed} if METHODS[self.method].random else described

    def renamed(self, names: Mapping[str, str]) -> "Recipe":
        """A copy with its models renamed."""

        def name(model: str) -> str:
            return names.get(model, model)

        def rename(sources: tuple[Source, ...]) -> tuple[Source, ...]:
            return tuple(dataclasses.replace(source, model=name(source.model)) for source in sources)

        slices = tuple(
            dataclasses.replace(part, sources=rename(part.sources), base=name(part.base)) for part in self.slices
        )
        choice = self.vocabulary
        tokens = {token: one.renamed(names) for token, one in choice.tokens.items()}
        vocabulary = dataclasses.replace(choice, source=name(choice.source), tokens=tokens)
        return dataclasses.replace(
            self,
            sources=rename(self.sources),
            slices=slices,
            base=name(self.base),
            leading=name(self.leading),
            vocabulary=vocabulary,
        )


def kind_of(default: Any) -> type:
    """The kind (float, int or bool) of a parameter with this default, for `Schedule.parse`."""
    return float if default is None else type(default)


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


_BALANCE = "t"


def two_parents(
    method: str,
    instruct: str,
    clinical: str,
    t: Any,
    *,
    base: str = "",
    parameters: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Recipe:
    """The recipe of the paper's setting: an instruct and a clinical model, and their base where the method needs one.

    In methods with weights the instruct model gets 1 - t and the clinical one t, unless `parameters` has `weight`,
    which then holds for both.

    Args:
      method: a name in `METHODS`.
      instruct: location of the instruct model, t = 0.
      clinical: location of the clinical model, t = 1.
      t: the balance, as `Schedule.parse` reads it.
      base: location of the base model; only used by methods that need one.
      parameters: other parameters, as `Schedule.parse` reads them; those of models hold for both models.
      **fields: other fields of `Recipe`.

    Raises:
      BadInput: a parameter is malformed, missing or not one of the method's, or the method unknown.
    """
    schedule = Schedule.parse(t, "config.t")
    parameters = dict(parameters or {})
    known: dict[str, Any] = {}
    if method in METHODS:
        known = {**METHODS[method].source_parameters, **METHODS[method].parameters}
        needs_base = METHODS[method].base is Base.REQUIRED
        if base and not needs_base and getattr(fields.get("vocabulary"), "source", "") == "base":
            raise BadInput(f"config.tokenizer: {method} does not use the base; give the base's location, or union")
        base = base if needs_base else ""
    parsed = {
        key: Schedule.parse(value, f"config.{'lambda_' if key == 'lambda' else key}", kind_of(known.get(key)))
        for key, value in parameters.items()
    }
    own: tuple[dict, dict] = ({}, {})
    if _BALANCE in known:
        parsed[_BALANCE] = schedule
    elif "weight" in known and "weight" not in parsed:
        own = ({"weight": schedule.complement()}, {"weight": schedule})
    elif known:
        reason = "weight is given" if "weight" in known else f"{method} has no balance"
        logging.info("config.t: is not used because %s", reason)
    beyond = [number for _, numbers in schedule.clauses for number in numbers if not 0.0 <= number <= 1.0]
    if beyond and (own[0] or _BALANCE in parsed):
        logging.warning("config.t: %g is outside 0..1, so the merge extrapolates beyond a parent", beyond[0])
    return Recipe(method, (Source(instruct, own[0]), Source(clinical, own[1])), parsed, base=base, **fields)
