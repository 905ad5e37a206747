"""Checkpoint to Params and back, by the parameter table, bit for bit."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from clinmerge_jax.checkpoint.folder import INDEX_FILE, SINGLE_FILE, Checkpoint
from clinmerge_jax.checkpoint.output import OutputFolder
from clinmerge_jax.checkpoint.safetensors import header_bytes, read_tensor
from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.parameters import Params, build_params, iterate_params, parameters

# Old conversions store RoPE's frequencies, which config.json determines; they are recomputed.
_DERIVED_SUFFIX = ".rotary_emb.inv_freq"

DEFAULT_SHARD_BYTES = 5_000_000_000


def llama_config(checkpoint: Checkpoint) -> LlamaConfig:
    """The architecture of a Checkpoint.

    Raises:
      BadInput: config.json is not a Llama's, or the tensors are not those it describes.
    """
    config = LlamaConfig.from_json(checkpoint.config, str(checkpoint.path / "config.json"))
    expected = {name: row.shape(config) for row in parameters(config) for name in row.names(config)}
    derived = [name for name in checkpoint.tensors if name.endswith(_DERIVED_SUFFIX)]
    if derived:
        logging.info("%s: %d stored RoPE buffers are not read, config.json states RoPE", checkpoint.path, len(derived))
    extra = [name for name in checkpoint.tensors if name not in expected and name not in derived]
    missing = [name for name in expected if name not in checkpoint.tensors]
    if extra == ["lm_head.weight"] and config.tie_word_embeddings:
        raise BadInput(
            f"{checkpoint.path}: stores lm_head.weight, but config.json says tie_word_embeddings;"
            " set it to false or remove the tensor"
        )
    for problem, names in (("lacks tensor", missing), ("holds tensor", extra)):
        if names:
            mend = "that config.json asks for" if names is missing else "that config.json does not ask for"
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise BadInput(f"{checkpoint.path}: {problem} {names[0]}{more} {mend}; fetch the checkpoint again")
    for name, shape in expected.items():
        if checkpoint.tensors[name].shape != shape:
            raise BadInput(
                f"{checkpoint.tensors[name].file}: tensor {name} has shape {list(checkpoint.tensors[name].shape)} where"
                f" config.json asks for {list(shape)}; config and weights belong to different models"
            )
    return config


def load_params(checkpoint: Checkpoint, dtype: Any = None) -> tuple[LlamaConfig, Params]:
    """Reads a whole Checkpoint into Params on the default device, one stacked leaf at a time.

    Args:
      checkpoint: an opened folder.
      dtype: converts every leaf; None keeps the stored bits.

    Raises:
      BadInput: as `llama_config`; or the layers of one parameter differ in dtype and no dtype is given.
    """
    config = llama_config(checkpoint)

    def leaf(row) -> jax.Array:
        entries = [checkpoint.tensors[name] for name in row.names(config)]
        odd = next((entry for entry in entries if entry.dtype != entries[0].dtype), None)
        if odd is not None and dtype is None:
            raise BadInput(
                f"{odd.file}: tensor {odd.name} is {odd.dtype} where its sister layers are {entries[0].dtype};"
                " save the checkpoint in one dtype"
            )
        wanted = entries[0].dtype if dtype is None else np.dtype(dtype)
        values = np.empty(row.stacked_shape(config), wanted)
        for layer, entry in enumerate(entries):
            values[layer if row.stacked else ...] = read_tensor(entry).astype(wanted, copy=False)
        return jnp.asarray(values)

    return config, build_params(config, leaf)


def split_into_shards(tensors: Sequence[tuple[str, int]], shard_bytes: int) -> dict[str, list[str]]:
    """Assigns tensors to weight files in the order given, each file filled up to a size.

    Args:
      tensors: name and bytes of each.
      shard_bytes: the most one file may hold; a larger tensor gets a file of its own.

    Returns:
      File name (as Hugging Face names them) to tensor names.
    """
    groups: list[list[str]] = []
    filled = 0
    for name, nbytes in tensors:
        if not groups or filled + nbytes > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += nbytes
    if len(groups) == 1:
        return {SINGLE_FILE: groups[0]}
    return {f"model-{n:05d}-of-{len(groups):05d}.safetensors": names for n, names in enumerate(groups, start=1)}


def index_json(shards: Mapping[str, Sequence[str]], total_bytes: int) -> str | None:
    """The text of model.safetensors.index.json; None where one file holds everything."""
    if list(shards) == [SINGLE_FILE]:
        return None
    weight_map = {name: file for file, names in shards.items() for name in names}
    return json.dumps({"metadata": {"total_size": total_bytes}, "weight_map": weight_map}, indent=1) + "\n"


def config_with_dtype(config: Mapping[str, Any], dtype: np.dtype) -> dict[str, Any]:
    """config.json with its dtype field set, in the spelling that it used (transformers 4: torch_dtype)."""
    keys = [key for key in ("torch_dtype", "dtype") if key in config] or ["dtype"]
    return {**config, **dict.fromkeys(keys, str(dtype))}


def save_params(
    params: Params,
    config: LlamaConfig,
    raw_config: Mapping[str, Any],
    output: OutputFolder,
    *,
    carried: Sequence[pathlib.Path] = (),
    shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> None:
    """Writes Params into an open OutputFolder as a Hugging Face checkpoint (without committing it).

    Args:
      params: leaves in float32, bfloat16 or float16, written as they are.
      config: the architecture.
      raw_config: config.json to write; its dtype field is set to the leaves' dtype.
      output: where to; weights first, then the carried files, the index and config.json last.
      carried: tokenizer and licence files to copy.
      shard_bytes: the most bytes of tensors in one weight file.
    """
    where = {}
    for row, leaf in iterate_params(params, config):
        for layer, name in enumerate(row.names(config)):
            where[name] = (leaf, layer if row.stacked else None, np.dtype(leaf.dtype), row.shape(config))
    sizes = {name: int(np.prod(shape)) * dtype.itemsize for name, (_, _, dtype, shape) in where.items()}
    shards = split_into_shards(list(sizes.items()), shard_bytes)
    for file_name, names in shards.items():
        temporary = output.path(file_name + ".part")
        with temporary.open("wb") as file:
            file.write(header_bytes((name, where[name][2], where[name][3]) for name in names))
            for name in names:
                leaf, layer, _, _ = where[name]
                values = np.asarray(leaf)  # the whole leaf: slicing on the device would compile for each shape
                values = np.ascontiguousarray(values if layer is None else values[layer])
                file.write(memoryview(values.reshape(-1).view(np.uint8)))
        temporary.rename(output.path(file_name))
    for path in carried:
        output.copy(path)
    index = index_json(shards, sum(sizes.values()))
    if index:
        output.write_text(INDEX_FILE, index)
    dtype = np.dtype(params["embed_tokens"]["weight"].dtype)
    output.write_text("config.json", json.dumps(config_with_dtype(raw_config, dtype), indent=1) + "\n")
