"""Merge plans: what happens to every tensor, checked before weights are read and executed by either engine."""

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
    """A model of a recipe: a checkpoint, and optionally a LoRA adapter to add to it."""

    checkpoint: Checkpoint
    adapter: Adapter | None = None

    def rows(self, name: str) -> StoredRows | AdaptedRows:
        """The row source of one tensor."""
        stored = StoredRows(self.checkpoint.tensors[name])
        adapted = self.adapter is not None and self.adapter.changes(name)
        return AdaptedRows(stored, self.adapter) if adapted else stored


def open_model(location: str, field: str) -> Model:
    """Opens `model` or `model+adapter`.

    Raises:
      BadInput: from `open_checkpoint` or `open_adapter`, or the adapter does not fit the checkpoint.
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
    """One input of a planned tensor.

    Attributes:
      model: the model's name in the recipe.
      name: the tensor's name in that model.
      origin: where it comes from, for messages; the file in the streaming engine.
      rows: its row source; None in the on-device engine, whose tensors are in device memory.
    """

    model: str
    name: str
    origin: str
    rows: RowSource | None = None


@dataclasses.dataclass(frozen=True)
class PlannedTensor:
    """The plan for one tensor, with the host half of the merge maths.

    Attributes:
      name: its name in the result.
      shape: of each input and of the result.
      dtype: of the result.
      method: the merge method.
      spec: the tensor spec that the method's host half takes.
      inputs: the tensors to merge; the base comes first where the method merges changes relative to it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    method: Method
    spec: TensorSpec
    inputs: tuple[Input, ...]

    @property
    def size(self) -> int:
        """Number of entries."""
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        """Size of the merged tensor in bytes."""
        return self.size * self.dtype.itemsize

    def pair(self, sums: np.ndarray) -> PairTotals:
        """The totals of the first two inputs, from the answer to `DIFFERENCES`.

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
        """Runs the method's host half.

        Raises:
          BadInput: the parameters give no coefficients.
        """
        try:
            return (yield from self.method.reductions(self.spec))
        except ValueError as error:
            raise BadInput(f"tensor {self.name}: {error}") from error

    def difference(self, pair: PairTotals, coefficients: Coefficients) -> TensorDifference:
        """The record of how the first two inputs differ, and of the coefficients used."""
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
      part: the slice of the recipe that produces the tensor.
      name: the tensor's name in the result.
      shape: of the tensor.
      dtype: of the first source; the recipe's dtype overrides it.
      depth: relative depth of the tensor in the slice, 0 to 1.
      inputs: the tensors to merge; the base comes first where the method merges changes relative to it.

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
    """The error for a merged tensor whose values exceed float16's range."""
    return BadInput(f"config.dtype: tensor {name} comes to values over float16's 65504; use bfloat16")


def result_dtype(recipe: Recipe, first: np.dtype) -> np.dtype:
    """The recipe's dtype, or the first source's where the recipe gives none."""
    return np.dtype(getattr(ml_dtypes, recipe.dtype, recipe.dtype)) if recipe.dtype else np.dtype(first)


@dataclasses.dataclass(frozen=True)
class MergePlan:
    """A checked merge of checkpoints, ready to run.

    Attributes:
      recipe: the merge.
      models: by their names in the recipe.
      tensors: by name, in the order in which they are written.
      files: the names of the tensors in each weight file of the result.
      vocabulary: the vocabulary alignment; None where every row stays at its place.
      chat_template: of the result; "" for the leading model's.
    """

    recipe: Recipe
    models: Mapping[str, Model]
    tensors: dict[str, PlannedTensor]
    files: dict[str, list[str]]
    vocabulary: Vocabulary | None = None
    chat_template: str = ""

    @property
    def nbytes(self) -> int:
        """Total size of the result's tensors in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def in_files_alone(self) -> str:
        """What this merge does that only the streaming engine supports; "" for nothing."""
        if self.recipe.slices:
            return "stack layers"
        if self.vocabulary is not None:
            return "align vocabularies"
        return "add adapters" if any(model.adapter for model in self.models.values()) else ""

    @property
    def leading(self) -> Checkpoint:
        """The model whose config, licence files and, unless vocabularies are aligned, tokenizer the result takes."""
        return self.models[self.recipe.leading_model].checkpoint

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
        """A checkpoint that describes the future result, to plan a merge that uses it; its weights cannot be read.

        Args:
          label: its name in messages.
          folder: an empty folder; all files except the weights are written to it.
        """
        for name, content in self.small_files().items():
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
        entries = {
            name: TensorEntry(name, tensor.dtype, tensor.shape, folder / "planned", 0)
            for name, tensor in self.tensors.items()
        }
        return Checkpoint(folder, self.config, entries, label, self.leading.naming)

    def small_files(self) -> dict[str, bytes | pathlib.Path]:
        """Tokenizer, generation and licence files, the index and config.json: content or path, by file name."""
        aligned = dict(self.vocabulary.files) if self.vocabulary else {}
        carried = {path.name: path for path in self.leading.carried_files()}
        if set(aligned) - {GENERATION_FILE}:  # another tokenizer: drop the leading model's files
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
        """Writes all files except the weights."""
        for name, content in self.small_files().items():
            if isinstance(content, pathlib.Path):
                output.copy(content, name)
            else:
                output.write_bytes(name, content)


def plan_merge(
    recipe: Recipe, sources: Sequence[Model | Checkpoint], shard_bytes: int = DEFAULT_SHARD_BYTES
) -> MergePlan:
    """Checks that the sources fit together and resolves every coefficient; reads no weights except some embedding rows.

    Args:
      recipe: the merge.
      sources: the models, in the order of `recipe.models`.
      shard_bytes: maximum bytes of tensors in one weight file.

    Raises:
      BadInput: the sources differ in tensors, shapes, architecture or vocabulary, a layer range lies outside its
        model, or a filter matches no tensor (in a recipe file that is only a warning).
    """
    given = [source if isinstance(source, Model) else Model(source) for source in sources]
    models = dict(zip(recipe.models, given, strict=True))
    checkpoints = {name: model.checkpoint for name, model in models.items()}
    choice = recipe.vocabulary
    lead = recipe.leading_model
    first = checkpoints[lead]  # the result takes its config.json and tokenizer, and warnings say so
    others = [one for name, one in checkpoints.items() if name != lead]
    embedding_shapes = {
        entry.shape for one in checkpoints.values() for name, entry in one.tensors.items() if "embed" in name
    }
    asked = bool(choice.source or choice.tokens or choice.pad_to_multiple_of or choice.cut_to_common)
    setting = "tokenizer_source" if recipe.file else "config.tokenizer"
    remedy = f"merge models of one vocabulary, or set {setting} to union, base or a model's location to align them"
    same_ids = not asked and len(embedding_shapes) == 1
    for other in others:
        check_compatible(first, other, layers=not recipe.slices, vocabulary=same_ids, remedy=remedy)
    vocabulary = None
    if asked or choice.special_rows or len(embedding_shapes) > 1:
        vocabulary = align(
            checkpoints,
            base=recipe.base,
            leading=lead,
            tokenizer=choice.source,
            token_sources=choice.tokens,
            missing=choice.missing,
            pad_to_multiple_of=choice.pad_to_multiple_of,
            cut_to_common=choice.cut_to_common,
            special_rows=choice.special_rows,
            adapters={name: model.adapter for name, model in models.items() if model.adapter},
        )
    for name, one in checkpoints.items():
        if name != lead:
            check_token_ids(one)
        elif vocabulary is None or TOKENIZER_FILE not in vocabulary.files:
            # Rows cut off on purpose only cause a warning.
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
    """The row source of one input, in the order of the result's vocabulary where vocabularies are aligned."""
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
    """Yields for every tensor of the result its name, slice, depth in the slice, and its name in each input."""
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
            f"{file or 'recipe'}: layer_range [{start}, {end}] of {source.model} is outside its"
            f" {checkpoint.num_hidden_layers} layers; give a first layer and an end from 0 to"
            f" {checkpoint.num_hidden_layers}"
        )
