"""Params as an Orbax checkpoint beside a config.json.

Layout of the folder: config.json, tokenizer and other small files as in a Hugging Face folder, and `params/`, which
Orbax writes and reads (`orbax.checkpoint.v1.load(folder / "params")`; older readers take `params/state`). Its tree is
nested dicts with Hugging Face's names: `embed_tokens.weight`, `norm.weight`, `lm_head.weight` if the head is untied,
and `layers.self_attn.q_proj.weight` and the like of shape [layers, out, in], with all layers on the leading axis.
"""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from clinmerge_jax.checkpoint.files import ORBAX_FOLDER
from clinmerge_jax.checkpoint.formats.safetensors import parse_json
from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.parameters import Params, build_params, iterate_params
from clinmerge_jax.parallel.layout import Layout, one_device

_READ_BYTES = 1 << 30  # bytes that Orbax reads at a time; at least one array, however large
_MARK = "_CHECKPOINT_METADATA"  # a file that Orbax writes; Orbax's own check also accepts safetensors folders
_MEND = "give a folder that configs/convert.py wrote with format=orbax"


def is_orbax(folder: pathlib.Path) -> bool:
    """Whether a folder holds an Orbax checkpoint, directly or in `params/`."""
    return any((place / _MARK).is_file() for place in (folder / ORBAX_FOLDER, folder))


@contextlib.contextmanager
def _context(reading: Params | None = None) -> Iterator[None]:
    """Sets Orbax's options for writing and reading.

    Compression is off, because weights hardly compress. A device's shard of an array is written as one chunk, without
    a copy: chunks larger than the limit of a data file (2 GiB by default) would be copied first, so the limit is off.
    Arrays may be padded on reading, because a mesh may need more vocabulary rows. Few arrays are read at a time.

    Args:
      reading: the abstract arrays to read; None for writing.
    """
    context = ocp.Context()
    context.array.saving.use_compression = False
    context.array.saving.ocdbt_target_data_file_size = 0
    context.array.loading.enable_padding_and_truncation = True
    sizes = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(reading) if leaf is not ocp.PLACEHOLDER]
    if sizes:
        context.memory.read_concurrent_bytes = max(_READ_BYTES, max(sizes) + 1)
    with context:
        yield


@contextlib.contextmanager
def _refusing(place: pathlib.Path) -> Iterator[None]:
    """Turns what Orbax and TensorStore raise for damaged and missing files into a BadInput of one line."""
    try:
        yield
    except (BadInput, MemoryError):
        raise
    except Exception as error:  # the library raises bare Exception where values are missing
        raise BadInput(f"{place}: is damaged ({' '.join(str(error).split())[:120]}); {_MEND}") from error


def save_orbax(params: Params, folder: pathlib.Path) -> None:
    """Writes `params/` in an existing folder, in place of what an interrupted run left there.

    Args:
      params: leaves without padding, on one device or sharded over a mesh.
      folder: the folder.
    """
    for left in folder.glob(f"{ORBAX_FOLDER}*"):
        shutil.rmtree(left)
    with _context():
        ocp.save(folder / ORBAX_FOLDER, params)


def read_config(folder: pathlib.Path) -> tuple[dict[str, Any], LlamaConfig]:
    """Reads config.json of an Orbax folder; returns its content and the LlamaConfig.

    Raises:
      BadInput: the file is missing, or is not a Llama's.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise BadInput(f"{folder}: is an Orbax checkpoint without config.json and params/; {_MEND}")
    raw = parse_json(path.read_bytes(), path)
    if not isinstance(raw, dict):
        raise BadInput(f"{path}: is not a JSON object; fetch it again")
    return raw, LlamaConfig.from_json(raw, str(path))


def read_dtypes(folder: pathlib.Path, config: LlamaConfig) -> Params:
    """Reads the dtype of each leaf, in a tree like Params, from the checkpoint's metadata.

    Raises:
      BadInput: the tree or a shape is not what config.json describes.
    """
    place = folder / ORBAX_FOLDER
    if not place.is_dir():
        raise BadInput(f"{folder}: has no {ORBAX_FOLDER}/; {_MEND}")
    with _refusing(place):
        found = ocp.metadata(place).metadata
    dtypes = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(found)[0]:
        dtypes[tuple(key.key for key in keys)] = (tuple(leaf.shape), leaf.dtype)

    def dtype(row: Any) -> Any:
        shape, dtype = dtypes.pop(row.path, (None, None))
        if shape != row.stacked_shape(config):
            is_there = "is missing" if shape is None else f"has shape {list(shape)}"
            raise BadInput(
                f"{place}: {'.'.join(row.path)} {is_there}, but config.json requires {list(row.stacked_shape(config))};"
                f" {_MEND}"
            )
        return dtype

    result = build_params(config, dtype)
    if dtypes:
        raise BadInput(f"{place}: holds {'.'.join(map(str, next(iter(dtypes))))}, which config.json does not expect")
    return result


def load_orbax(folder: pathlib.Path, *, mesh: Mesh | None = None) -> tuple[LlamaConfig, Params]:
    """Loads Params sharded over a mesh by `Layout`, whatever their sharding was when they were saved.

    Args:
      folder: an Orbax folder.
      mesh: the device mesh; None takes the first device of this process.

    Raises:
      BadInput: config.json is missing or not a Llama's, the tree does not fit it, or as `Layout`.
    """
    _, config = read_config(folder)
    layout = one_device(config) if mesh is None else Layout(mesh, config)
    dtypes = {row.path: dtype for row, dtype in iterate_params(read_dtypes(folder, config), config)}
    like = build_params(
        config,
        lambda row: jax.ShapeDtypeStruct(layout.shape(row), dtypes[row.path], sharding=layout.sharding(row)),
    )
    with _context(like), _refusing(folder / ORBAX_FOLDER):
        return config, ocp.load(folder / ORBAX_FOLDER, like)


def host_device() -> jax.Device:
    """The CPU device, whose memory may hold more than one accelerator's; else the first device of this process."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS does not name the CPU
        return jax.local_devices()[0]


def load_leaf(folder: pathlib.Path, config: LlamaConfig, path: tuple[str, ...]) -> jax.Array:
    """Loads a single leaf into host memory.

    Args:
      folder: an Orbax folder.
      config: its model.
      path: the path of the leaf in Params.
    """
    sharding = jax.sharding.SingleDeviceSharding(host_device())
    dtypes = {row.path: dtype for row, dtype in iterate_params(read_dtypes(folder, config), config)}

    def leaf(row: Any) -> Any:
        if row.path != path:
            return ocp.PLACEHOLDER
        return jax.ShapeDtypeStruct(row.stacked_shape(config), dtypes[path], sharding=sharding)

    like = build_params(config, leaf)
    with _context(like), _refusing(folder / ORBAX_FOLDER):
        loaded = ocp.load(folder / ORBAX_FOLDER, like)
    return next(array for row, array in iterate_params(loaded, config) if row.path == path)


def params_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files of `params/`, sorted."""
    found = (pathlib.Path(place) / name for place, _, names in os.walk(folder / ORBAX_FOLDER) for name in names)
    return sorted(found)
