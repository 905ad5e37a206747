"""Moves the tensors of a Source, piece by piece, into Hugging Face weight files or into Params for Orbax."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import ml_dtypes
import numpy as np

from clinmerge_jax.checkpoint.formats.safetensors import header_bytes
from clinmerge_jax.checkpoint.output import OutputFolder
from clinmerge_jax.checkpoint.parameters.blocks import ahead, aligned_empty
from clinmerge_jax.checkpoint.parameters.orbax_folder import host_device
from clinmerge_jax.conversion.source import Source, SourceTensor
from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.parameters import Params, build_params, parameters


@dataclasses.dataclass
class Rounding:
    """What a change of dtype rounded.

    Attributes:
      values: the number of values converted.
      changed: the number of them that changed.
      largest: the largest relative change of a value that is normal in the new dtype.
    """

    values: int = 0
    changed: int = 0
    largest: float = 0.0

    def add(self, other: "Rounding") -> None:
        """Adds the counts of another."""
        self.values += other.values
        self.changed += other.changed
        self.largest = max(self.largest, other.largest)


def convert(values: np.ndarray, dtype: np.dtype, name: str) -> tuple[np.ndarray, Rounding]:
    """Converts values to another dtype, rounded to nearest, ties to even; the same array if nothing changes.

    Args:
      values: a piece of a tensor.
      dtype: the new dtype.
      name: the name of the tensor.

    Raises:
      BadInput: a value is out of range of the new dtype.
    """
    rounding = Rounding(values.size)
    if values.dtype == dtype:
        return values, rounding
    with np.errstate(over="ignore"):  # overflow is refused below
        result = values.astype(dtype)
    before, after = (x.astype(np.float32, copy=False) for x in (values, result))
    if not np.isfinite(after).all() and np.isfinite(before).all():
        raise BadInput(
            f"config.dtype: tensor {name} holds values that {dtype} cannot represent; give float32 or bfloat16"
        )
    changed = (before != after) & ~np.isnan(before)
    rounding.changed = int(np.count_nonzero(changed))
    if rounding.changed:
        tiny = float(ml_dtypes.finfo(dtype).tiny)
        normal = changed & (np.abs(before) >= tiny)
        relative = np.abs(after[normal] - before[normal]) / np.abs(before[normal])
        rounding.largest = float(relative.max(initial=0.0))
    return result, rounding


def _pieces(tensors: Sequence[SourceTensor], dtypes: Mapping[str, np.dtype], finite: bool) -> Iterator[tuple]:
    """Yields (tensor, first row) and (values, rounding) of every piece; a thread makes the next while one is used."""

    def make(step: tuple[SourceTensor, int, int]) -> tuple[np.ndarray, Rounding]:
        tensor, first, rows = step
        values = tensor.read(first, rows)
        if finite and not np.isfinite(values.astype(np.float32, copy=False)).all():
            raise BadInput(
                f"config.source: tensor {tensor.name} holds values that are not finite; fetch the file again"
            )
        return convert(values, dtypes[tensor.name], tensor.name)

    steps = ((tensor, first, rows) for tensor in tensors for first, rows in tensor.pieces())
    for (tensor, first, _), made in ahead(make, steps, threads=1):
        yield (tensor, first), made


def write_files(
    source: Source,
    dtypes: Mapping[str, np.dtype],
    files: Mapping[str, Sequence[str]],
    output: OutputFolder,
    progress: Callable[[int], None],
) -> Rounding:
    """Writes Hugging Face weight files; each finished one is recorded in the journal, and a rerun skips it.

    Args:
      source: the model to convert.
      dtypes: the dtypes of the result, by tensor.
      files: the tensors of each file, from `split_into_shards`.
      output: an open folder.
      progress: called with the bytes written since the last call.

    Raises:
      BadInput: a dequantized value is not finite, or a value is out of range of its new dtype.
    """
    journal = output.read_journal()
    for file_name, names in files.items():
        if file_name in journal:
            progress(sum(source.tensors[name].size * dtypes[name].itemsize for name in names))
            continue
        tensors = [source.tensors[name] for name in names]
        total = Rounding()
        stored = ((source.naming.stored(one.name), dtypes[one.name], one.shape) for one in tensors)
        with output.weight_file(file_name, header_bytes(stored)) as append:
            for _, (values, rounding) in _pieces(tensors, dtypes, source.quantized):
                progress(append(values))
                total.add(rounding)
        journal[file_name] = dataclasses.asdict(total)
        output.write_journal(journal)
    result = Rounding()
    for file_name in files:
        result.add(Rounding(**journal[file_name]))
    return result


def read_params(
    source: Source, config: LlamaConfig, dtypes: Mapping[str, np.dtype], progress: Callable[[int], None]
) -> tuple[Params, Rounding]:
    """Reads the whole model into Params in host memory.

    Args:
      source: the model to convert.
      config: its architecture; its tensors are those of the parameter table.
      dtypes: the dtypes of the result, by tensor; all layers of a parameter have one.
      progress: called with the bytes converted since the last call.

    Returns:
      Params, and what was rounded.

    Raises:
      BadInput: a dequantized value is not finite, or a value is out of range of its new dtype.
    """
    device = host_device()
    leaves: dict[tuple[str, ...], np.ndarray] = {}
    places: dict[str, np.ndarray] = {}
    for row in parameters(config):
        leaves[row.path] = leaf = aligned_empty(row.stacked_shape(config), dtypes[row.names(config)[0]])
        places |= {name: leaf[layer] if row.stacked else leaf for layer, name in enumerate(row.names(config))}
    total = Rounding()
    tensors = [tensor for name, tensor in source.tensors.items() if name in places]
    for (tensor, first), (values, rounding) in _pieces(tensors, dtypes, source.quantized):
        place = places[tensor.name]
        place.reshape(tensor.rows, -1)[first : first + len(values)] = values
        total.add(rounding)
        progress(values.nbytes)
    return build_params(config, lambda row: jax.device_put(leaves[row.path], device)), total
