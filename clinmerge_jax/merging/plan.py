"""What a merge will do to every tensor, checked before a weight is read; both engines work it off."""

import dataclasses
import json
from collections.abc import Sequence

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
from clinmerge_jax.merging.methods import METHODS, PairTotals
from clinmerge_jax.merging.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class PlannedTensor:
    """The plan for one tensor, and the host's half of the merge maths.

    Attributes:
      name: as in the checkpoint.
      shape: of each source and of the result.
      dtype: of the result.
      method: a name in `METHODS`.
      values: the method's parameters here.
      source_values: each source's.
      origins: where each source's comes from, for messages.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    method: str
    values: dict[str, float]
    source_values: list[dict[str, float]]
    origins: tuple[str, ...]

    @property
    def size(self) -> int:
        """Entries."""
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        """Bytes of the result."""
        return self.size * self.dtype.itemsize

    def coefficients(self, totals: Sequence[PairTotals]) -> list[float]:
        """The factor of each source.

        Raises:
          BadInput: the parameters give none.
        """
        try:
            return METHODS[self.method].coefficients(self.values, self.source_values, totals)
        except ValueError as error:
            raise BadInput(f"tensor {self.name}: {error}") from error

    def difference(self, totals: Sequence[PairTotals], coefficients: Sequence[float]) -> TensorDifference:
        """The record of what the first two sources differ by and what was done.

        Raises:
          BadInput: the result may not fit float16.
        """
        largest = max(max(pair.a_squared, pair.b_squared) for pair in totals) ** 0.5
        if self.dtype == np.float16 and largest * sum(map(abs, coefficients)) > float(np.finfo(np.float16).max):
            raise BadInput(f"config.dtype: tensor {self.name} may hold values over float16's 65504; use bfloat16")
        return TensorDifference(self.name, self.size, totals[0], tuple(coefficients))


def pair_totals(name: str, origins: Sequence[str], sums: Sequence[Sequence[np.ndarray]]) -> list[PairTotals]:
    """What the per-row sums of one tensor come to.

    Args:
      name: of the tensor.
      origins: where each source's comes from.
      sums: for every source but the first, the arrays [R, 3] of `exact.pair_sums` of its pieces.

    Raises:
      BadInput: a source holds values that are not finite.
    """
    pairs = []
    for origin, per_piece in zip(origins[1:], sums, strict=True):
        totals = exact.total(per_piece)
        if not np.isfinite(totals).all():
            raise BadInput(
                f"{origins[0]} or {origin}: tensor {name} holds NaN, infinity or values over 1e19; fetch or train that"
                " checkpoint again"
            )
        pairs.append(PairTotals.from_array(totals))
    return pairs


def plan_tensor(
    recipe: Recipe, name: str, shape: tuple[int, ...], dtype: np.dtype, layers: int, origins: Sequence[str]
) -> PlannedTensor:
    """Resolves a recipe for one tensor.

    Args:
      recipe: the merge.
      name: of the tensor.
      shape: of the tensor.
      dtype: of the first source, which the recipe's may replace.
      layers: of the model.
      origins: where each source's comes from, for messages.
    """
    values, source_values = recipe.values_at(name, layers)
    return PlannedTensor(name, shape, result_dtype(recipe, dtype), recipe.method, values, source_values, tuple(origins))


def result_dtype(recipe: Recipe, first: np.dtype) -> np.dtype:
    """What the recipe asks for, or the first source's dtype."""
    return np.dtype(getattr(ml_dtypes, recipe.dtype, recipe.dtype)) if recipe.dtype else np.dtype(first)


@dataclasses.dataclass(frozen=True)
class MergePlan:
    """A checked merge of Checkpoints, ready to run.

    Attributes:
      recipe: what was asked for.
      sources: the models, in the recipe's order.
      tensors: by name, in the first source's order.
      files: the weight files of the result and their tensors.
    """

    recipe: Recipe
    sources: tuple[Checkpoint, ...]
    tensors: dict[str, PlannedTensor]
    files: dict[str, list[str]]

    @property
    def nbytes(self) -> int:
        """Bytes of tensors that the result will have."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def write_small_files(self, output: OutputFolder) -> None:
        """What lies beside the weights: the first source's tokenizer and licence files, index and config.json."""
        first = self.sources[0]
        for path in first.carried_files():
            output.copy(path)
        index = index_json(self.files, self.nbytes)
        if index:
            output.write_text(INDEX_FILE, index)
        config = dict(first.config)
        if self.recipe.dtype:
            config = config_with_dtype(config, result_dtype(self.recipe, np.dtype(np.float32)))
        output.write_text("config.json", json.dumps(config, indent=1) + "\n")


def plan_merge(recipe: Recipe, sources: Sequence[Checkpoint], shard_bytes: int = DEFAULT_SHARD_BYTES) -> MergePlan:
    """Checks that the sources fit together and resolves every coefficient; reads no weights.

    Raises:
      BadInput: the sources differ in tensors, shapes, architecture or vocabulary, or a filter of
        the recipe fits nothing.
    """
    first = sources[0]
    for other in sources[1:]:
        check_compatible(first, other)
    layers = first.num_hidden_layers
    for schedule in recipe.schedules():
        schedule.check_filters(first.tensors)
    tensors = {}
    for name, entry in first.tensors.items():
        if entry.size == 0:
            raise BadInput(f"{entry.file}: tensor {name} has no entries (shape {list(entry.shape)}); remove it")
        origins = [str(source.tensors[name].file) for source in sources]
        tensors[name] = plan_tensor(recipe, name, entry.shape, entry.dtype, layers, origins)
    files = split_into_shards([(name, tensor.nbytes) for name, tensor in tensors.items()], shard_bytes)
    return MergePlan(recipe, tuple(sources), tensors, files)
