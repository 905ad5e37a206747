"""What a merge will do to every tensor, checked before a weight is read; both engines work it off."""

import dataclasses
import json
import math
from collections.abc import Generator, Iterator, Mapping, Sequence

import ml_dtypes
import numpy as np

from clinmerge_jax.checkpoint.folder import INDEX_FILE, Checkpoint
from clinmerge_jax.checkpoint.output import OutputFolder
from clinmerge_jax.checkpoint.weight_files import (
    DEFAULT_SHARD_BYTES,
    config_with_dtype,
    index_json,
    split_into_shards,
)
from clinmerge_jax.errors import BadInput
from clinmerge_jax.merging import exact
from clinmerge_jax.merging.compatibility import check_compatible
from clinmerge_jax.merging.diagnostics import TensorDifference
from clinmerge_jax.merging.methods import METHODS, Factors, Method, PairTotals, Problem, Step
from clinmerge_jax.merging.recipe import Recipe, Slice, Source, depth_of, layer_of, with_layer


@dataclasses.dataclass(frozen=True)
class Input:
    """Where one input of a tensor comes from.

    Attributes:
      model: as the recipe names it.
      name: of the tensor there.
      origin: the file, for messages.
    """

    model: str
    name: str
    origin: str


@dataclasses.dataclass(frozen=True)
class PlannedTensor:
    """The plan for one tensor, and the host's half of the merge maths.

    Attributes:
      name: in the result.
      shape: of each source and of the result.
      dtype: of the result.
      method: what merges it.
      problem: what its host half needs to know.
      inputs: the tensors that are merged, the base first where changes are counted from one.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    method: Method
    problem: Problem
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

    def steps(self) -> Generator[Step, np.ndarray, Factors]:
        """The method's host half.

        Raises:
          BadInput: the parameters give no factors.
        """
        try:
            return (yield from self.method.steps(self.problem))
        except ValueError as error:
            raise BadInput(f"tensor {self.name}: {error}") from error

    def difference(self, pair: PairTotals, factors: Factors) -> TensorDifference:
        """The record of what the first two models differ by and what was done."""
        return TensorDifference(self.name, self.size, pair, factors.shown)


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
    problem = Problem(name, math.prod(shape) // columns, columns, values, source_values, from_base, recipe.seed)
    try:
        method.check(problem)
    except ValueError as error:
        raise BadInput(f"tensor {name}: {error}") from error
    return PlannedTensor(name, shape, result_dtype(recipe, dtype), method, problem, tuple(inputs))


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
      sources: the models by the recipe's names.
      tensors: by name, in the order in which they are written.
      files: the weight files of the result and their tensors.
    """

    recipe: Recipe
    sources: Mapping[str, Checkpoint]
    tensors: dict[str, PlannedTensor]
    files: dict[str, list[str]]

    @property
    def nbytes(self) -> int:
        """Bytes of tensors that the result will have."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def stacked(self) -> bool:
        """Whether the result's layers are others than the sources'."""
        return bool(self.recipe.slices)

    @property
    def leading(self) -> Checkpoint:
        """The model whose tokenizer, config and licence files the result takes."""
        return self.sources[self.recipe.leading or self.recipe.models[0]]

    def write_small_files(self, output: OutputFolder) -> None:
        """What lies beside the weights: the leading model's tokenizer and licence files, index and config.json."""
        for path in self.leading.carried_files():
            output.copy(path)
        index = index_json(self.files, self.nbytes)
        if index:
            output.write_text(INDEX_FILE, index)
        config = dict(self.leading.config)
        if self.recipe.dtype:
            config = config_with_dtype(config, result_dtype(self.recipe, np.dtype(np.float32)))
        if self.stacked:
            config["num_hidden_layers"] = 1 + max(layer_of(name) or 0 for name in self.tensors)
        output.write_text("config.json", json.dumps(config, indent=1) + "\n")


def plan_merge(recipe: Recipe, sources: Sequence[Checkpoint], shard_bytes: int = DEFAULT_SHARD_BYTES) -> MergePlan:
    """Checks that the sources fit together and resolves every coefficient; reads no weights.

    Args:
      recipe: the merge.
      sources: the models, in the order of `recipe.models`.
      shard_bytes: the most bytes of tensors in one weight file.

    Raises:
      BadInput: the sources differ in tensors, shapes, architecture or vocabulary, a layer range lies outside its
        model, or a filter of the recipe fits nothing.
    """
    models = dict(zip(recipe.models, sources, strict=True))
    first = sources[0]
    for other in sources[1:]:
        check_compatible(first, other, layers=not recipe.slices)
    for schedule in recipe.schedules():
        schedule.check_filters(first.tensors)
    tensors = {}
    for name, part, depth, names in _outputs(recipe, models):
        chosen = [source.model for source in recipe.all_inputs(part)]
        entries = [models[model].tensors[its_name] for model, its_name in zip(chosen, names)]
        if entries[0].size == 0:
            raise BadInput(
                f"{entries[0].file}: tensor {name} has no entries (shape {list(entries[0].shape)}); remove it"
            )
        inputs = [Input(model, entry.name, str(entry.file)) for model, entry in zip(chosen, entries)]
        leading = entries[chosen.index(part.sources[0].model)]
        tensors[name] = plan_tensor(recipe, part, name, entries[0].shape, leading.dtype, depth, inputs)
    files = split_into_shards([(name, tensor.nbytes) for name, tensor in tensors.items()], shard_bytes)
    return MergePlan(recipe, models, tensors, files)


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
            _check_layers(source, models[source.model])
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


def _check_layers(source: Source, checkpoint: Checkpoint) -> None:
    start, end = source.layers
    if not 0 <= start < end <= checkpoint.num_hidden_layers:
        raise BadInput(
            f"recipe: layer_range [{start}, {end}] of {source.model} lies outside its"
            f" {checkpoint.num_hidden_layers} layers; give a first layer and an end from 0 to"
            f" {checkpoint.num_hidden_layers}"
        )
