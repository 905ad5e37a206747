"""Reads mergekit's recipe files into Recipes, and writes Recipes as such files.

The semantics are those of mergekit 0.1.5 (`mergekit-yaml` for one document, `mergekit-multi` for several), except that
the maths always runs in float32: `dtype` and `out_dtype` give the dtype of the result. Unsupported settings are refused
by name. So are unknown keys, which mergekit ignores.
"""

import dataclasses
import difflib
import graphlib
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml
from absl import logging

from clinmerge_jax.errors import BadInput
from clinmerge_jax.merging.methods import METHODS
from clinmerge_jax.merging.recipes.recipe import (
    Recipe,
    Slice,
    Source,
    TokenSource,
    VocabularyChoice,
    kind_of,
)
from clinmerge_jax.merging.recipes.schedule import Schedule

RECIPE_FILE = "recipe.yml"

_TOP = (
    "name", "merge_method", "base_model", "models", "slices", "modules", "parameters", "dtype", "out_dtype",
    "tokenizer_source", "tokenizer", "chat_template",
)  # fmt: skip
_LAYOUTS = ("models", "slices", "modules")
_MODULE = "default"  # mergekit's name for the one module of a decoder
_REASONS = {
    "residual_weight": "is not supported; mergekit itself does not use it",
    "override_architecture": "is not supported; tensors are taken by their names",
    "pad_to_multiple_of": "belongs under tokenizer",
    "layer_range": "belongs to the sources of slices; models are taken whole",
    "filter_wise": "belongs under parameters",
    "normalize": "belongs under parameters",
    "int8_mask": "belongs under parameters",
    "weight": "belongs under parameters",
    "density": "belongs under parameters",
    "t": "belongs under parameters",
}


@dataclasses.dataclass(frozen=True)
class Stage:
    """One document of a recipe file.

    Attributes:
      name: the name by which other documents use its result; "" for the final merge.
      recipe: the merge; its models are folders, hub ids, URLs, or the folders of earlier stages.
      output: the folder of its result.
    """

    name: str
    recipe: Recipe
    output: str


class _Loader(yaml.SafeLoader):
    """A YAML loader that refuses duplicate keys, of which YAML would silently take the last."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    for index, key in enumerate(keys):
        if key in keys[:index]:
            raise yaml.constructor.ConstructorError(
                None, None, f"{key!r} is given twice", node.value[index][0].start_mark
            )
    return dict(zip(keys, (loader.construct_object(value, deep=True) for _, value in node.value)))


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_stages(path: str, output: str, seed: int = 0) -> list[Stage]:
    """Reads a recipe file.

    Relative model folders are looked up in the working directory, then in the recipe file's folder; other locations,
    such as hub ids, stay as they are. Several documents, separated by `---`, may use one another's results by `name`;
    the one without a name is the final merge.

    Args:
      path: the file.
      output: folder of the final merge; a named merge is written to `OUTPUT.stages/NAME`.
      seed: seed of random masks.

    Returns:
      The merges, ordered so that each comes after those whose results it uses.

    Raises:
      BadInput: the file is wrong or not supported, in one line that names the place in the file.
    """
    file = pathlib.Path(path).expanduser()
    documents = _load(file)
    names = [_name(document, place) for place, document in documents]
    for index, name in enumerate(names):
        if name in names[:index]:
            what = f"the name {name!r} is given to two documents" if name else "two documents have no name"
            raise BadInput(f"{file}: {what}; give each its own name, except one final merge")
    folders = {name: os.path.join(f"{output}.stages", name) if name else output for name in names}
    recipes, needs = {}, {}
    for name, (place, document) in zip(names, documents):
        recipe = _Reader(place, file.parent, set(names) - {""}).recipe(document, seed)
        if name in recipe.models:
            raise BadInput(f"{place}: {name!r} merges its own result; rename it, or the model")
        recipes[name] = recipe
        needs[name] = [model for model in _referenced(recipe) if model in folders]
    try:
        order = list(graphlib.TopologicalSorter(needs).static_order())
    except graphlib.CycleError as error:
        circle = " <- ".join(error.args[1])
        raise BadInput(
            f"{file}: documents depend on one another in a circle ({circle}); let one depend on none of them"
        ) from error
    return [
        Stage(name, recipes[name].renamed({n: f for n, f in folders.items() if n}), folders[name]) for name in order
    ]


def _referenced(recipe: Recipe) -> list[str]:
    """Models whose weights or tokenizers a recipe uses, without their adapters."""
    models = [*recipe.models, recipe.vocabulary.source, *(one.model for one in recipe.vocabulary.tokens.values())]
    return [model.split("+")[0] for model in models if model]


def write(recipe: Recipe) -> str:
    """The text of a recipe file that `read_stages` and mergekit read."""
    lines = "# A clinmerge_jax merge, in mergekit's format; maths in float32.\n"
    if METHODS[recipe.method].random:
        lines += f"# Random masks: seed {recipe.seed}; mergekit draws others.\n"
    return lines + yaml.dump(recipe.to_mergekit(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Dumper(yaml.SafeDumper):
    """A YAML dumper that writes lists of numbers on one line."""

    def represent_sequence(self, tag: str, sequence: Sequence[Any], flow_style: bool | None = None) -> yaml.Node:
        in_line = all(isinstance(item, (int, float)) for item in sequence)
        return super().represent_sequence(tag, sequence, flow_style=in_line)


def _load(file: pathlib.Path) -> list[tuple[str, dict]]:
    """The place, for messages, and content of every document."""
    try:
        content = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise BadInput(f"config.recipe: the file {file} does not exist; give a mergekit recipe") from error
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"config.recipe: {file} cannot be read as text ({error}); give a mergekit recipe") from error
    try:
        documents = [document for document in yaml.load_all(content, _Loader) if document is not None]
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else str(file)
        what = getattr(error, "problem", None) or str(error)
        raise BadInput(f"{where}: is not YAML ({' '.join(what.split())}); correct that line") from error
    if not documents:
        raise BadInput(f"{file}: is empty; give merge_method and models")
    several = len(documents) > 1
    places = [f"{file}: document {index}" if several else str(file) for index in range(1, len(documents) + 1)]
    for place, document in zip(places, documents):
        if not isinstance(document, dict):
            raise BadInput(f"{place}: is {_kind(document)}; give keys such as merge_method and models")
    return list(zip(places, documents))


def _name(document: Mapping[str, Any], place: str) -> str:
    name = document.get("name")
    if name is None:
        return ""
    if not isinstance(name, str) or not name or pathlib.PurePath(name).name != name or "+" in name:
        raise BadInput(f"{place}: name: is {name!r}; give a word that can name a folder")
    return name


def _kind(value: Any) -> str:
    for kind, word in ((dict, "a mapping"), (list, "a list"), (bool, "a truth value"), (str, "text")):
        if isinstance(value, kind):
            return word
    return "nothing" if value is None else "a number"


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Reads one document.

    Attributes:
      place: of the document, for messages.
      folder: the file's folder, in which relative model folders may be.
      stages: names of all documents.
    """

    place: str
    folder: pathlib.Path
    stages: set[str]

    def recipe(self, document: Mapping[str, Any], seed: int) -> Recipe:
        self._keys(document, _TOP, "")
        method = document.get("merge_method")
        if not isinstance(method, str):
            raise BadInput(f"{self.place}: merge_method: is {'missing' if method is None else method!r}; give one")
        if method not in METHODS:
            raise BadInput(
                f"{self.place}: merge_method: {method!r} is unknown{_guess(method, METHODS)}; choose from"
                f" {', '.join(METHODS)}"
            )
        given = [key for key in _LAYOUTS if document.get(key) is not None]
        if len(given) != 1:
            problem = f"has {' and '.join(given)}" if given else "has none of models, slices and modules"
            raise BadInput(f"{self.place}: {problem}; give exactly one of the three")
        read = _Parameters(self, method)
        parameters = read(document.get("parameters"), "parameters")
        layout, at = document, ""
        if given[0] == "modules":
            layout, at = self._module(document["modules"]), f"modules.{_MODULE}."
            inner = read(layout.get("parameters"), f"{at}parameters")
            parameters |= {key: schedule.before(parameters.get(key)) for key, schedule in inner.items()}
        sources, slices = (), ()
        if layout.get("models") is not None:
            sources = self._list(layout["models"], f"{at}models", lambda one, where: self._source(one, where, read))
            _check_twice([source.model for source in sources], f"{self.place}: {at}models")
        else:
            slices = self._list(layout["slices"], f"{at}slices", lambda one, where: self._slice(one, where, read))
        base = self._model(document.get("base_model"), "base_model") if document.get("base_model") else ""
        dtype = self._text(document, "out_dtype") or self._text(document, "dtype")
        recipe = Recipe(
            method, sources, parameters, dtype, base, slices, seed, base, self._vocabulary(document),
            self._text(document, "chat_template"), self.place,
        )  # fmt: skip
        for part in recipe.parts:
            _, counted = recipe.inputs(part)
            if counted is not None and counted.parameters:
                names = ", ".join(counted.parameters)
                logging.warning("%s: %s of the base model is not used: its changes are zero", self.place, names)
        return recipe

    def _keys(self, mapping: Any, known: Sequence[str], where: str) -> None:
        """Refuses values that are not mappings, and unknown keys."""
        if not isinstance(mapping, dict):
            raise BadInput(f"{self._at(where)}: is {_kind(mapping)}; give a mapping with {', '.join(known)}")
        for key in mapping:
            if key not in known:
                full = f"{where}.{key}" if where else f"{key}"
                reason = _REASONS.get(key) or f"is unknown{_guess(key, known)}; choose from {', '.join(known)}"
                mend = "" if ";" in reason else "; correct or remove it"
                raise BadInput(f"{self.place}: {full}: {reason}{mend}")

    def _at(self, where: str) -> str:
        return f"{self.place}: {where}" if where else self.place

    def _list(self, items: Any, where: str, read: Callable[[Any, str], Any]) -> tuple:
        if not isinstance(items, list) or not items:
            raise BadInput(f"{self._at(where)}: is {'empty' if items == [] else _kind(items)}; give a list")
        return tuple(read(item, f"{where}[{index}]") for index, item in enumerate(items))

    def _text(self, document: Mapping[str, Any], key: str) -> str:
        value = document.get(key)
        if value is not None and not isinstance(value, str):
            raise BadInput(f"{self.place}: {key}: is {_kind(value)}; give text")
        return value or ""

    def _module(self, modules: Any) -> Mapping[str, Any]:
        if not isinstance(modules, dict) or set(modules) != {_MODULE}:
            shown = ", ".join(map(repr, modules)) if isinstance(modules, dict) else _kind(modules)
            raise BadInput(f"{self.place}: modules: has {shown or 'none'}; a decoder has one, {_MODULE!r}")
        where = f"modules.{_MODULE}"
        self._keys(modules[_MODULE], ("models", "slices", "parameters"), where)
        given = [key for key in ("models", "slices") if modules[_MODULE].get(key) is not None]
        if len(given) != 1:
            raise BadInput(f"{self.place}: {where}: has {' and '.join(given) or 'neither'}; give models or slices")
        return modules[_MODULE]

    def _source(self, item: Any, where: str, read: "_Parameters", sliced: bool = False) -> Source:
        self._keys(item, ("model", "layer_range", "parameters") if sliced else ("model", "parameters"), where)
        if item.get("model") is None:
            raise BadInput(f"{self.place}: {where}.model: is missing; give a folder or hub id")
        layers = None
        if sliced:
            layers = item.get("layer_range")
            fits = isinstance(layers, list) and len(layers) == 2 and all(type(layer) is int for layer in layers)
            if not fits or not 0 <= layers[0] < layers[1]:
                shown = "missing" if layers is None else repr(layers)
                raise BadInput(
                    f"{self.place}: {where}.layer_range: is {shown}; give [first, end], whole numbers from 0 on"
                )
            layers = (layers[0], layers[1])
        return Source(
            self._model(item["model"], f"{where}.model"), read(item.get("parameters"), f"{where}.parameters"), layers
        )

    def _slice(self, item: Any, where: str, read: "_Parameters") -> Slice:
        self._keys(item, ("sources", "parameters", "base_model"), where)
        sources = self._list(
            item.get("sources"), f"{where}.sources", lambda one, at: self._source(one, at, read, sliced=True)
        )
        base = self._model(item["base_model"], f"{where}.base_model") if item.get("base_model") else ""
        return Slice(sources, read(item.get("parameters"), f"{where}.parameters"), base)

    def _model(self, value: Any, where: str) -> str:
        """Reads path, path@revision, path+adapter, or the mapping that mergekit writes for them."""
        if isinstance(value, str) and value:
            model, plus, adapter = value.partition("+")
            if plus and not (model and adapter):
                raise BadInput(f"{self.place}: {where}: {value!r} lacks a side of '+'; give model+adapter")
            if plus and os.path.isdir(os.path.expanduser(value)):
                return value
            return f"{self._place(model)}+{self._place(adapter)}" if plus else self._place(model)
        if isinstance(value, dict) and "path" in value:
            self._keys(value, ("path", "revision"), where)
            revision = value.get("revision")
            return self._model(f"{value['path']}@{revision}" if revision else value["path"], f"{where}.path")
        if isinstance(value, dict) and "model" in value:
            self._keys(value, ("model", "lora"), where)
            model = self._model(value["model"], f"{where}.model")
            return f"{model}+{self._model(value['lora'], f'{where}.lora')}" if value.get("lora") else model
        raise BadInput(f"{self.place}: {where}: is {_kind(value)}; give a folder, a hub id or model+adapter")

    def _place(self, location: str) -> str:
        """Takes a folder relative to the recipe file if it exists there and not in the working directory."""
        beside = self.folder / location
        if location in self.stages or os.path.isdir(os.path.expanduser(location)) or not beside.is_dir():
            return location
        return str(beside)

    def _vocabulary(self, document: Mapping[str, Any]) -> VocabularyChoice:
        source, section = document.get("tokenizer_source"), document.get("tokenizer")
        if source is not None and section is not None:
            raise BadInput(f"{self.place}: has both tokenizer_source and tokenizer; give one of the two")
        if section is None:
            return VocabularyChoice(self._tokenizer(source, "tokenizer_source") if source is not None else "")
        self._keys(section, ("source", "tokens", "pad_to_multiple_of"), "tokenizer")
        pad = section.get("pad_to_multiple_of")
        if pad is not None and (type(pad) is not int or pad < 1):
            raise BadInput(f"{self.place}: tokenizer.pad_to_multiple_of: is {pad!r}; give a whole number from 1 on")
        tokens = section.get("tokens") or {}
        if not isinstance(tokens, dict):
            raise BadInput(f"{self.place}: tokenizer.tokens: is {_kind(tokens)}; give a mapping of tokens")
        named = {token: self._token(token, one, f"tokenizer.tokens.{token}") for token, one in tokens.items()}
        source = section.get("source")
        chosen = "union" if source is None else self._tokenizer(source, "tokenizer.source")
        return VocabularyChoice(chosen, named, pad or 0)

    def _tokenizer(self, source: Any, where: str) -> str:
        return source if source in ("union", "base") else self._model(source, where)

    def _token(self, token: Any, section: Any, where: str) -> TokenSource:
        if not isinstance(token, str) or not token:
            raise BadInput(f"{self.place}: tokenizer.tokens: {token!r} is not text; put the token in quotes")
        self._keys({} if section is None else section, ("source", "force"), where)
        section = section or {}
        force = section.get("force", False)
        if not isinstance(force, bool):
            raise BadInput(f"{self.place}: {where}.force: is {force!r}; give true or false")
        source = section.get("source")
        if source is None:
            return TokenSource("", force)
        if not isinstance(source, dict) or "kind" not in source:
            return TokenSource(self._model(source, f"{where}.source"), force)
        if source["kind"] == "zero":
            self._keys(source, ("kind",), f"{where}.source")
            return TokenSource("zero", force)
        if source["kind"] != "model_token":
            raise BadInput(f"{self.place}: {where}.source.kind: is {source['kind']!r}; give zero or model_token")
        self._keys(source, ("kind", "model", "token", "token_id"), f"{where}.source")
        ids = [source[key] for key in ("token", "token_id") if source.get(key) is not None]
        if len(ids) != 1 or source.get("model") is None or isinstance(ids[0], bool):
            raise BadInput(
                f"{self.place}: {where}.source: is {sorted(source)}; give model, and one of token and token_id"
            )
        if not isinstance(ids[0], str if source.get("token") is not None else int):
            raise BadInput(
                f"{self.place}: {where}.source: {ids[0]!r} is not a token; give text as token, or a number as token_id"
            )
        return TokenSource((self._model(source["model"], f"{where}.source.model"), ids[0]), force)


@dataclasses.dataclass(frozen=True)
class _Parameters:
    """Reads the parameters at any level of the recipe.

    Attributes:
      reader: of the document.
      method: the merge method.
    """

    reader: _Reader
    method: str

    def __call__(self, section: Any, where: str) -> dict[str, Schedule]:
        if section is None:
            return {}
        method = METHODS[self.method]
        known = {**method.source_parameters, **method.parameters}
        if not isinstance(section, dict):
            raise BadInput(f"{self.reader.place}: {where}: is {_kind(section)}; give name: value")
        read = {}
        for name, value in section.items():
            place = f"{self.reader.place}: {where}.{name}"
            if name not in known:
                raise BadInput(
                    f"{place}: {self.method} has no such parameter{_guess(name, known)}; it has"
                    f" {', '.join(known) or 'none'}"
                )
            read[name] = Schedule.from_mergekit(value, place, kind_of(known[name]))
        return read


def _guess(word: Any, known: Sequence[str] | Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(str(word), list(known), 1)
    return f" (is {near[0]} meant?)" if near else ""


def _check_twice(models: Sequence[str], where: str) -> None:
    for index, model in enumerate(models):
        if model in models[:index]:
            raise BadInput(f"{where}: {model} is given twice; add up its weights, or use slices")
