"""Loads a Checkpoint into Params and saves Params, bit for bit, on one device or sharded over a mesh."""

import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from clinmerge_jax.checkpoint.files import INDEX_FILE
from clinmerge_jax.checkpoint.folder import Checkpoint
from clinmerge_jax.checkpoint.formats.safetensors import TensorEntry, header_bytes
from clinmerge_jax.checkpoint.names import USUAL, Naming
from clinmerge_jax.checkpoint.output import SYNC_BYTES, OutputFolder, sync
from clinmerge_jax.checkpoint.parameters.blocks import (
    BLOCK_BYTES,
    Blocks,
    WeightReader,
    ahead,
    place,
    take,
    write,
)
from clinmerge_jax.checkpoint.parameters.weight_files import (
    DEFAULT_SHARD_BYTES,
    config_with_dtype,
    index_json,
    split_into_shards,
)
from clinmerge_jax.checkpoint.tokenizers.tokenizer import check_token_ids
from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.parameters import Parameter, Params, build_params, iterate_params, parameters
from clinmerge_jax.parallel import distributed
from clinmerge_jax.parallel.layout import Layout, one_device


def llama_config(checkpoint: Checkpoint) -> LlamaConfig:
    """The architecture of a Checkpoint.

    Raises:
      BadInput: config.json is not a Llama's, or the tensors are not those that it describes.
    """
    config = LlamaConfig.from_json(checkpoint.config, str(checkpoint.path / "config.json"))
    expected = {name: row.shape(config) for row in parameters(config) for name in row.names(config)}
    extra = [name for name in checkpoint.tensors if name not in expected]
    missing = [name for name in expected if name not in checkpoint.tensors]
    for problem, names in (("lacks tensor", missing), ("holds tensor", extra)):
        if names:
            mend = "that config.json requires" if names is missing else "that config.json does not expect"
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise BadInput(f"{checkpoint.path}: {problem} {names[0]}{more} {mend}; fetch the checkpoint again")
    for name, shape in expected.items():
        if checkpoint.tensors[name].shape != shape:
            raise BadInput(
                f"{checkpoint.tensors[name].file}: tensor {name} has shape {list(checkpoint.tensors[name].shape)}, but"
                f" config.json requires {list(shape)}; config and weights belong to different models"
            )
    check_token_ids(checkpoint)
    return config


def _silent(nbytes: int) -> None:
    """A progress callback that does nothing."""


def load_params(
    checkpoint: Checkpoint,
    dtype: Any = None,
    *,
    mesh: Mesh | None = None,
    progress: Callable[[int], None] = _silent,
) -> tuple[LlamaConfig, Params]:
    """Reads a Checkpoint into Params, sharded over a mesh by `Layout`.

    Leaves of at most one block are read first, whole; all others in one pass over the weight files in their order.
    Every process reads what its own devices hold, a few blocks (`blocks.BLOCK_BYTES`) at a time, so that the host needs
    little memory whatever the model.

    Args:
      checkpoint: an opened folder.
      dtype: the dtype of every leaf; None keeps the stored bits.
      mesh: the device mesh; None takes the first device of this process.
      progress: called with the bytes of tensors placed since the last call.

    Raises:
      BadInput: as `llama_config` and `Layout`; or the layers of one parameter differ in dtype and no dtype is given.
    """
    config = llama_config(checkpoint)
    layout = one_device(config) if mesh is None else Layout(mesh, config)
    leaves: dict[tuple[str, ...], jax.Array] = {}
    in_blocks: dict[str, tuple[Parameter, int, np.dtype, Blocks]] = {}
    with WeightReader(checkpoint.files) as reader:
        for row in parameters(config):
            entries = [checkpoint.tensors[name] for name in row.names(config)]
            wanted = _leaf_dtype(entries, dtype)
            blocks = Blocks(row, layout, max(entries[0].dtype.itemsize, wanted.itemsize))
            if blocks.one_step and sum(entry.nbytes for entry in entries) <= BLOCK_BYTES:
                leaves[row.path] = _load_whole(row, entries, layout, blocks, reader, wanted)
                progress(sum(entry.nbytes for entry in entries))
            else:
                in_blocks |= {entry.name: (row, layer, wanted, blocks) for layer, entry in enumerate(entries)}

        def read(step: tuple[TensorEntry, int]) -> dict:
            entry, start = step
            _, _, wanted, blocks = in_blocks[entry.name]
            return reader.read(entry, blocks, start, wanted)

        in_order = [entry for name, entry in checkpoint.tensors.items() if name in in_blocks]
        steps = ((entry, start) for entry in in_order for start in in_blocks[entry.name][3].starts)
        for (entry, start), parts in ahead(read, steps):
            row, layer, wanted, blocks = in_blocks[entry.name]
            if row.path not in leaves:
                leaves[row.path] = jnp.zeros(layout.shape(row), wanted, device=layout.sharding(row))
            block = jax.make_array_from_callback(
                blocks.shape,
                blocks.sharding,
                lambda index, blocks=blocks, parts=parts, start=start: parts[blocks.part(index, start)],
            )
            leaves[row.path] = place(
                leaves[row.path],
                block,
                np.int32(layer),
                np.int32(start),
                leaf_sharding=blocks.leaf_sharding,
                sharding=blocks.sharding,
            ).block_until_ready()  # bounds the blocks in memory to those read ahead
            progress(entry.nbytes // len(blocks.starts))
    return config, build_params(config, lambda row: leaves[row.path])


def _leaf_dtype(entries: Sequence[TensorEntry], dtype: Any) -> np.dtype:
    odd = next((entry for entry in entries if entry.dtype != entries[0].dtype), None)
    if odd is not None and dtype is None:
        raise BadInput(
            f"{odd.file}: tensor {odd.name} is {odd.dtype}, but {entries[0].dtype} in other layers; save the checkpoint"
            " in one dtype"
        )
    return entries[0].dtype if dtype is None else np.dtype(dtype)


def _load_whole(
    row: Parameter,
    entries: Sequence[TensorEntry],
    layout: Layout,
    blocks: Blocks,
    reader: WeightReader,
    dtype: np.dtype,
) -> jax.Array:
    """Loads a leaf that fits in one block, all its layers together."""
    layers = [reader.read(entry, blocks, 0, dtype) for entry in entries]

    def shard(index: tuple[slice, ...]) -> np.ndarray:
        part = blocks.part(index[row.stacked :], 0)
        # Each device gets memory of its own: on CPUs the device array may use this very memory.
        return np.stack([layer[part] for layer in layers]) if row.stacked else layers[0][part].copy()

    return jax.make_array_from_callback(layout.shape(row), layout.sharding(row), shard)


def write_weights(
    params: Params,
    layout: Layout,
    files: Mapping[str, Sequence[str]],
    output: OutputFolder,
    progress: Callable[[int], None] = _silent,
    naming: Naming = USUAL,
) -> None:
    """Writes the weight files of a Hugging Face folder; every process writes what its own devices hold.

    Args:
      params: leaves in float32, bfloat16 or float16, written as they are.
      layout: their sharding; leaves that are sharded otherwise are moved.
      files: from `split_into_shards`.
      output: an open folder that all processes see.
      progress: called with the bytes of tensors written since the last call.
      naming: how the files spell the names in `files`.

    Raises:
      BadInput: a process does not see the folder.
      OSError: writing failed.
    """
    leaves = {}
    for row, leaf in iterate_params(params, layout.config):
        leaf = jax.device_put(leaf, layout.sharding(row))
        blocks = Blocks(row, layout, leaf.dtype.itemsize)
        leaves |= {name: (row, layer, leaf, blocks) for layer, name in enumerate(row.names(layout.config))}
    entries: dict[str, list[TensorEntry]] = {}
    for file_name, names in files.items():
        path = output.path(file_name + ".part")
        shapes = [(name, np.dtype(leaves[name][2].dtype), leaves[name][0].shape(layout.config)) for name in names]
        header = header_bytes((naming.stored(name), dtype, shape) for name, dtype, shape in shapes)
        entries[file_name] = []
        end = len(header)
        for name, dtype, shape in shapes:
            entries[file_name].append(TensorEntry(name, dtype, shape, path, end))
            end += entries[file_name][-1].nbytes
        if distributed.is_first():
            with path.open("wb") as file:
                file.write(header)
                file.truncate(end)
    distributed.barrier("weight files made")
    for file_name in files:
        _write_file(output.path(file_name + ".part"), entries[file_name], leaves, progress)
    distributed.barrier("weight files written")
    if distributed.is_first():
        for file_name in files:
            output.path(file_name + ".part").rename(output.path(file_name))
        sync(output.partial)


def _write_file(path: pathlib.Path, entries: Sequence[TensorEntry], leaves: Mapping, progress: Callable) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY)
    except FileNotFoundError as error:
        raise BadInput(
            f"config.output: process {jax.process_index()} does not see {path}, which process 0 created; name a folder"
            " that all processes share"
        ) from error

    def steps() -> Iterator[tuple[TensorEntry, Blocks, dict]]:
        for entry in entries:
            row, layer, leaf, blocks = leaves[entry.name]
            for start in blocks.starts:
                yield entry, blocks, _fetch(row, leaf, layer, start, blocks)

    unsynced = 0
    try:
        for (entry, blocks, _), nbytes in ahead(lambda step: write(descriptor, *step), steps()):
            progress(entry.nbytes // len(blocks.starts))
            unsynced += nbytes
            if unsynced >= SYNC_BYTES:
                os.fdatasync(descriptor)
                unsynced = 0
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fetch(row: Parameter, leaf: jax.Array, layer: int, start: int, blocks: Blocks) -> dict:
    """Copies the parts of one block that this process's devices hold to the host, one of each set of replicas."""
    if blocks.one_step and leaf.nbytes <= BLOCK_BYTES:
        shards = [shard for shard in leaf.addressable_shards if shard.replica_id == 0]
        return {
            blocks.part(shard.index[row.stacked :], start): np.asarray(shard.data)[layer if row.stacked else ...]
            for shard in shards
        }
    block = take(
        leaf,
        np.int32(layer),
        np.int32(start),
        size=blocks.size,
        leaf_sharding=blocks.leaf_sharding,
        sharding=blocks.sharding,
    )
    shards = [shard for shard in block.addressable_shards if shard.replica_id == 0]
    return {blocks.part(shard.index, start): np.asarray(shard.data) for shard in shards}


def save_params(
    params: Params,
    config: LlamaConfig,
    raw_config: Mapping[str, Any],
    output: OutputFolder,
    *,
    carried: Sequence[pathlib.Path] = (),
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    layout: Layout | None = None,
    naming: Naming = USUAL,
) -> None:
    """Writes Params into an open OutputFolder as a Hugging Face checkpoint (without committing it).

    Every process writes what its own devices hold; the first one also writes the small files.

    Args:
      params: leaves in float32, bfloat16 or float16, written as they are.
      config: the architecture.
      raw_config: config.json to write; its dtype field is set to the leaves' dtype.
      output: the open folder; weights are written first, then the carried files, the index, and config.json last.
      carried: tokenizer and licence files to copy.
      shard_bytes: the maximum bytes of tensors in one weight file.
      layout: the sharding of the leaves; None for one device.
      naming: how the files spell the tensor names.
    """
    sizes = {
        name: int(np.prod(row.shape(config))) * leaf.dtype.itemsize
        for row, leaf in iterate_params(params, config)
        for name in row.names(config)
    }
    files = split_into_shards(list(sizes.items()), shard_bytes)
    write_weights(params, layout or one_device(config), files, output, naming=naming)
    if not distributed.is_first():
        return
    for path in carried:
        output.copy(path)
    index = index_json(files, sum(sizes.values()), naming)
    if index:
        output.write_text(INDEX_FILE, index)
    dtype = np.dtype(params["embed_tokens"]["weight"].dtype)
    output.write_text("config.json", json.dumps(config_with_dtype(raw_config, dtype), indent=1) + "\n")
