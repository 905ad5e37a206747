"""What a merge will do to every tensor, checked before a weight is read; both engines work it off."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from clinmerge_jax.checkpoint.adapters.adapter import Adapter, open_adapter, split_location
from clinmerge_jax.checkpoint.files import GENERATION_FILE, INDEX_FILE
from clinmerge_jax.checkpoint.folder import Checkpoint, open_checkpoint
from clinmerge_jax.checkpoint.formats.safetensors import TensorEntry
from clinmerge_jax.checkpoint.output import OutputFolder
from clinmerge_jax.checkpoint.parameters.weight_files import (
    DEFAULT_SHARD_BYTES,
    config_with_dtype,
    index_json,
    split_into_shards,
)
from clinmerge_jax.checkpoint.tokenizers.embedding import has_vocabulary_rows
from clinmerge_jax.checkpoint.tokenizers.tokenizer import TOKENIZER_FILE, check_token_ids, tokenizer_files
from clinmerge_jax.errors import BadInput
from clinmerge_jax.merging import exact
from clinmerge_jax.merging.compatibility import check_compatible
from clinmerge_jax.merging.diagnostics import TensorDifference
from clinmerge_jax.merging.methods import (
    METHODS,
    Coefficients,
    Method,
    PairTotals,
    Reduction,
    TensorSpec,
)
from clinmerge_jax.merging.recipes.recipe import Recipe, Slice, Source
from clinmerge_jax.merging.recipes.schedule import depth_of, layer_of, with_layer
from clinmerge_jax.merging.row_source import AdaptedRows, AlignedRows, RowSource, StoredRows
from clinmerge_jax.merging.vocabulary.alignment import Vocabulary, align
from clinmerge_jax.merging.vocabulary.chat_templates import chosen_template, with_chat_template


@dataclasses.dataclass(frozen=True)
class Model:
    """A model of a recipe: a Checkpoint, with an adapter added where it has one."""

    checkpoint: Checkpoint
    adapter: Adapter | None = None

    def rows(self, name: str) -> StoredRows | AdaptedRows:
        """One of its tensors."""
        stored = StoredRows(self.checkpoint.tensors[name])
        adapted = self.adapter is not None and self.adapter.changes(name)
        return AdaptedRows(stored, self.adapter) if adapted else stored


def open_model(location: str, field: str) -> Model:
    """Opens `model` or `model+adapter`.

    Raises:
      BadInput: as `open_checkpoint` and `open_adapter`, or they do not belong together.
    """
    place, adapter_place = split_location(location)
    checkpoint = open_checkpoint(place, field)
    if not adapter_place:
        return Model(checkpoint)
    adapter = open_adapter(adapter_place, field)
    adapter.check(checkpoint)
    return Model(checkpoint, adapter)


@dataclasses.dataclass(frozen=True)
class Input:
    """Where one input of a tensor comes from.

    Attributes:
      model: as the recipe names it.
      name: of the tensor there.
      origin: the file, for messages.
      rows: its values; None on the mesh, where they are in memory.
    """

    model: str
    name: str
    origin: str
    rows: RowSource | None = None


@dataclasses.dataclass(frozen=True)
class PlannedTensor:
    """The plan for one tensor, and the host's half of the merge maths.

    Attributes:
      name: in the result.
      shape: of each source and of the result.
      dtype: of the result.
      method: what merges it.
      spec: what its host half needs to know.
      inputs: the tensors that are merged, the base first where changes are counted from one.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    method: Method
    spec: TensorSpec
    inputs: tuple[Input, ...]

    @property
    def size(self) -> int:
        """Entries."""
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        """Bytes of the result."""
        return self.size * self.dtype.itemsize

    def pair(self, sums: np.ndarray) -> PairTotals:
        """What the answer of `DIFFERENCES` comes to for the first two inputs.

        Raises:
          BadInput: an input holds values that are not finite.
        """
        totals = exact.total([sums])
        for index, pair in enumerate(totals.reshape(-1, 3)):
            if not np.isfinite(pair).all():
                both = list(
                    dict.fromkeys([self.inputs[0].origin, self.inputs[min(index + 1, len(self.inputs) - 1)].origin])
                )
                raise BadInput(
                    f"{' or '.join(both)}: tensor {self.name} holds NaN, infinity or values over 1e19; fetch or train"
                    " that checkpoint again"
                )
        pairs = [PairTotals.from_array(pair) for pair in totals.reshape(-1, 3)]
        return pairs[0]

    def reductions(self) -> Generator[Reduction, np.ndarray, Coefficients]:
        """The method's host half.

        Raises:
          BadInput: the parameters give no coefficients.
        """
        try:
            return (yield from self.method.reductions(self.spec))
        except ValueError as error:
            raise BadInput(f"tensor {self.name}: {error}") from error

    def difference(self, pair: PairTotals, coefficients: Coefficients) -> TensorDifference:
        """The record of what the first two models differ by and what was done."""
        return TensorDifference(self.name, self.size, pair, coefficients.shown)


def plan_tensor(
    recipe: Recipe,
    part: Slice,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    depth: float,
    inputs: Sequence[Input],
) -> PlannedTensor:
    """Resolves a recipe for one tensor.

    Args:
      recipe: the merge.
      part: the slice of it that makes the tensor.
      name: of the tensor in the result.
      shape: of the tensor.
      dtype: of the first source, which the recipe's may replace.
      depth: of the tensor in the slice, 0 to 1.
      inputs: what is merged, the base first where changes are counted from one.

    Raises:
      BadInput: the method cannot use the parameters.
    """
    method = METHODS[recipe.method]
    from_base = recipe.inputs(part)[1] is not None
    values, source_values = recipe.values(part, name, [one.name for one in inputs[from_base:]], depth)
    columns = shape[-1] if shape else 1
    spec = TensorSpec(name, math.prod(shape) // columns, columns, values, source_values, from_base, recipe.seed)
    try:
        method.check(spec)
    except ValueError as error:
        raise BadInput(f"tensor {name}: {error}") from error
    return PlannedTensor(name, shape, result_dtype(recipe, dtype), method, spec, tuple(inputs))


def overflow(name: str) -> BadInput:
    """The refusal of a merged tensor whose values float16 cannot hold."""
    return BadInput(f"config.dtype: tensor {name} comes to values over float16's 65504; use bfloat16")


def result_dtype(recipe: Recipe, first: np.dtype) -> np.dtype:
    """What the recipe asks for, or the first source's dtype."""
    return np.dtype(getattr(ml_dtypes, recipe.dtype, recipe.dtype)) if recipe.dtype else np.dtype(first)


@dataclasses.dataclass(frozen=True)
class MergePlan:
    """A checked merge of Checkpoints, ready to run.

    Attributes:
      recipe: what was asked for.
      models: by the recipe's names.
      tensors: by name, in the order in which they are written.
      files: the weight files of the result and their tensors.
      vocabulary: whose rows go where; None where all models have the same.
      chat_template: of the result, "" for the leading model's.
    """

    recipe: Recipe
    models: Mapping[str, Model]
    tensors: dict[str, PlannedTensor]
    files: dict[str, list[str]]
    vocabulary: Vocabulary | None = None
    chat_template: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of tensors that the result will have."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def in_files_alone(self) -> str:
        """What about it only the streaming engine can do; "" for nothing."""
        if self.recipe.slices:
            return "stack layers"
        if self.vocabulary is not None:
            return "align vocabularies"
        return "add adapters" if any(model.adapter for model in self.models.values()) else ""

    @property
    def leading(self) -> Checkpoint:
        """The model whose config, licence files and, unless vocabularies are aligned, tokenizer the result takes."""
        return self.models[self.recipe.leading or self.recipe.models[0]].checkpoint

    @property
    def config(self) -> dict[str, Any]:
        """config.json of the result."""
        config = dict(self.leading.config)
        if self.recipe.dtype:
            config = config_with_dtype(config, result_dtype(self.recipe, np.dtype(np.float32)))
        if self.recipe.slices:
            config["num_hidden_layers"] = 1 + max(layer_of(name) or 0 for name in self.tensors)
        return config | dict(self.vocabulary.config_updates if self.vocabulary else {})

    def as_checkpoint(self, label: str, folder: pathlib.Path) -> Checkpoint:
        """What the result will look like, for the plan of a merge that uses it; its weights cannot be read.

        Args:
          label: how messages name it.
          folder: an empty one, which gets what will lie beside the weights.
        """
        for name, content in self.small_files().items():
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
        entries = {
            name: TensorEntry(name, tensor.dtype, tensor.shape, folder / "planned", 0)
            for name, tensor in self.tensors.items()
        }
        return Checkpoint(folder, self.config, entries, label, self.leading.naming)

    def small_files(self) -> dict[str, bytes | pathlib.Path]:
        """Tokenizer, generation and licence files, the index and config.json: content, or where it lies, by name."""
        aligned = dict(self.vocabulary.files) if self.vocabulary else {}
        carried = {path.name: path for path in self.leading.carried_files()}
        if set(aligned) - {GENERATION_FILE}:  # another tokenizer, of which no file may be the leading model's
            replaced = tokenizer_files(self.leading.path)
            carried = {name: path for name, path in carried.items() if name not in replaced}
        small = carried | aligned
        if self.chat_template:
            small = with_chat_template(small, self.chat_template)
        index = index_json(self.files, self.nbytes, self.leading.naming)
        if index:
            small[INDEX_FILE] = index.encode()
        return {**small, "config.json": (json.dumps(self.config, indent=1) + "\n").encode()}

    def write_small_files(self, output: OutputFolder) -> None:
        """Writes what lies beside the weights."""
        for name, content in self.small_files().items():
            if isinstance(content, pathlib.Path):
                output.copy(content, name)
            else:
                output.write_bytes(name, content)


def plan_merge(
    recipe: Recipe, sources: Sequence[Model | Checkpoint], shard_bytes: int = DEFAULT_SHARD_BYTES
) -> MergePlan:
    """Checks that the sources fit together and resolves every coefficient; reads no weights but some embedding rows.

    Args:
      recipe: the merge.
      sources: the models, in the order of `recipe.models`.
      shard_bytes: the most bytes of tensors in one weight file.

    Raises:
      BadInput: the sources differ in tensors, shapes, architecture or vocabulary, a layer range lies outside its
        model, or a filter of the recipe fits nothing.
    """
    given = [source if isinstance(source, Model) else Model(source) for source in sources]
    models = dict(zip(recipe.models, given, strict=True))
    checkpoints = {name: model.checkpoint for name, model in models.items()}
    choice = recipe.vocabulary
    first, *others = checkpoints.values()
    sizes = {entry.shape for one in checkpoints.values() for name, entry in one.tensors.items() if "embed" in name}
    asked = bool(choice.source or choice.tokens or choice.pad_to_multiple_of or choice.cut_to_common)
    for other in others:
        check_compatible(first, other, layers=not recipe.slices, vocabulary=not asked and len(sizes) == 1)
    vocabulary = None
    if asked or choice.special_rows or len(sizes) > 1:
        vocabulary = align(
            checkpoints,
            base=recipe.base,
            leading=recipe.leading or recipe.models[0],
            tokenizer=choice.source,
            token_sources=choice.tokens,
            missing=choice.missing,
            pad_to_multiple_of=choice.pad_to_multiple_of,
            cut_to_common=choice.cut_to_common,
            special_rows=choice.special_rows,
            adapters={name: model.adapter for name, model in models.items() if model.adapter},
        )
    for name, one in checkpoints.items():
        if name != (recipe.leading or recipe.models[0]):
            check_token_ids(one)
        elif vocabulary is None or TOKENIZER_FILE not in vocabulary.files:
            # Whoever cuts rows off on purpose is only warned.
            check_token_ids(one, vocabulary.size if vocabulary else 0, refuse=not choice.cut_to_common)
    for schedule in recipe.schedules():
        schedule.check_filters(first.tensors, refuse=not recipe.file)
    tensors = {}
    for name, part, depth, names in _outputs(recipe, checkpoints):
        chosen = [source.model for source in recipe.all_inputs(part)]
        entries = [checkpoints[model].tensors[its_name] for model, its_name in zip(chosen, names)]
        if entries[0].size == 0:
            raise BadInput(
                f"{entries[0].file}: tensor {name} has no entries (shape {list(entries[0].shape)}); remove it"
            )
        aligned = vocabulary is not None and has_vocabulary_rows(name)
        inputs = [
            Input(model, entry.name, str(entry.file), _rows(models, model, entry.name, vocabulary if aligned else None))
            for model, entry in zip(chosen, entries)
        ]
        leading = entries[chosen.index(part.sources[0].model)]
        shape = (vocabulary.size, *entries[0].shape[1:]) if aligned else entries[0].shape
        tensors[name] = plan_tensor(recipe, part, name, shape, leading.dtype, depth, inputs)
    files = split_into_shards([(name, tensor.nbytes) for name, tensor in tensors.items()], shard_bytes)
    chat_template = chosen_template(recipe.chat_template, checkpoints.values(), recipe.place("chat_template"))
    return MergePlan(recipe, models, tensors, files, vocabulary, chat_template)


def _rows(models: Mapping[str, Model], model: str, name: str, vocabulary: Vocabulary | None) -> RowSource:
    """The rows of one input, in the order of the result's vocabulary where there is one."""
    own = models[model].rows(name)
    if vocabulary is None:
        return own
    donors = {
        row: tuple((models[donor].rows(name), its_row) for donor, its_row in lent)
        for row, lent in vocabulary.fill.items()
        if vocabulary.rows[model][row] < 0
    }
    return AlignedRows(own, vocabulary.rows[model], donors, models[model].checkpoint.tensors[name].shape[-1])


def _outputs(recipe: Recipe, models: Mapping[str, Checkpoint]) -> Iterator[tuple[str, Slice, float, list[str]]]:
    """Every tensor of the result: its name, slice, depth in the slice, and its name in each input."""
    first = models[recipe.parts[0].sources[0].model]
    if not recipe.slices:
        (part,) = recipe.parts
        count = len(recipe.all_inputs(part))
        for name in first.tensors:
            yield name, part, depth_of(layer_of(name), first.num_hidden_layers), [name] * count
        return
    outside = [name for name in first.tensors if layer_of(name) is None]
    before = [name for name in outside if "embed" in name]
    for name in before:
        yield name, recipe.slices[0], 0.0, [name] * len(recipe.all_inputs(recipe.slices[0]))
    count = 0
    for part in recipe.slices:
        inputs = recipe.all_inputs(part)
        for source in inputs:
            _check_layers(source, models[source.model], recipe.file)
        start, end = inputs[0].layers
        of_layer = [name for name in models[inputs[0].model].tensors if layer_of(name) == start]
        for offset in range(end - start):
            for name in of_layer:
                names = [with_layer(name, source.layers[0] + offset) for source in inputs]
                yield with_layer(name, count), part, depth_of(offset, end - start), names
            count += 1
    for name in outside:
        if name not in before:
            yield name, recipe.slices[-1], 0.0, [name] * len(recipe.all_inputs(recipe.slices[-1]))


def _check_layers(source: Source, checkpoint: Checkpoint, file: str) -> None:
    start, end = source.layers
    if not 0 <= start < end <= checkpoint.num_hidden_layers:
        raise BadInput(
            f"{file or 'recipe'}: layer_range [{start}, {end}] of {source.model} lies outside its"
            f" {checkpoint.num_hidden_layers} layers; give a first layer and an end from 0 to"
            f" {checkpoint.num_hidden_layers}"
        )
