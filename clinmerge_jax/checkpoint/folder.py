"""A Checkpoint: a Hugging Face folder, opened and checked without reading its weights."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from clinmerge_jax.checkpoint import remote
from clinmerge_jax.checkpoint.files import (
    CARRIED_FILES,
    INDEX_FILE,
    ORBAX_FOLDER,
    SINGLE_FILE,
    conversion_refusal,
    pickle_refusal,
)
from clinmerge_jax.checkpoint.formats.safetensors import DTYPES, TensorEntry, parse_json, read_header
from clinmerge_jax.checkpoint.names import USUAL, Naming, naming_of
from clinmerge_jax.checkpoint.not_parameters import (
    ALL_DTYPES,
    is_buffer,
    quantization_key,
    quantization_refusal,
    say,
    without_tied_head,
)
from clinmerge_jax.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face folder.

    Attributes:
      path: the folder.
      config: the content of config.json.
      tensors: every parameter by its usual name, in the order of the files and of the bytes in them.
      label: its name in messages, such as a config field.
      naming: how the files spell the tensor names.
    """

    path: pathlib.Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorEntry]
    label: str
    naming: Naming = USUAL

    @property
    def files(self) -> list[pathlib.Path]:
        """The weight files, in order."""
        return list(dict.fromkeys(entry.file for entry in self.tensors.values()))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.nbytes for entry in self.tensors.values())

    @functools.cached_property
    def num_hidden_layers(self) -> int:
        """The number of layers in config.json.

        Raises:
          BadInput: config.json states no positive integer.
        """
        layers = self.config.get("num_hidden_layers")
        if type(layers) is not int or layers < 1:
            raise BadInput(f"{self.path / 'config.json'}: num_hidden_layers is {layers!r}; give a positive integer")
        return layers

    def carried_files(self) -> list[pathlib.Path]:
        """The tokenizer, generation and licence files to copy to a derived checkpoint."""
        found = {path for pattern in CARRIED_FILES for path in self.path.glob(pattern) if path.is_file()}
        return sorted(found)


def resolve(location: str, field: str) -> pathlib.Path:
    """Returns the local folder of a model, which is fetched first if it is remote.

    Args:
      location: `miniature:NAME`, a folder, org/name or org/name@revision on the hub, or a URL (gs://bucket/model);
        an existing folder takes precedence over a hub id of the same spelling.
      field: the config field that gave it, for messages.

    Raises:
      BadInput: there is no such folder, miniature or model, or it cannot be fetched.
    """
    if not location:
        raise BadInput(f"{field}: is empty; give a checkpoint folder, a hub id org/name or miniature:NAME")
    scheme, _, name = location.partition(":")
    if scheme == "miniature":
        root = pathlib.Path(__file__).parents[1] / "miniature" / "models"
        names = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
        if name not in names:
            choices = f"choose from {', '.join(names)}" if names else "none is installed"
            raise BadInput(f"{field}: there is no miniature {name!r}; {choices}")
        return root / name
    path = pathlib.Path(os.path.expanduser(location))
    if os.path.isdir(path):
        return path
    if path.suffix == ".gguf" and path.is_file():
        raise conversion_refusal(f"{field}: {location} is a GGUF file", path, path.with_suffix(""))
    if remote.is_url(location):
        return remote.fetch_url(location, field)
    if remote.is_hub_id(location):
        return remote.fetch_hub(location, field)
    raise BadInput(
        f"{field}: {location} is not a folder, and not a hub id org/name; give a checkpoint folder, org/name,"
        " gs://bucket/folder or s3://bucket/folder"
    )


def open_checkpoint(location: str, field: str, dtypes: Mapping[str, np.dtype] = DTYPES) -> Checkpoint:
    """Opens a folder, reads config.json and every header, and checks that they agree.

    Args:
      location: any location that `resolve` accepts.
      field: the config field that gave it, for messages.
      dtypes: the dtypes that tensors may have, by safetensors code.

    Raises:
      BadInput: something is missing, duplicated, damaged or outside the folder, or the weights are quantized, pickled
        or in another format; the message is one line.
    """
    path = resolve(location, field)
    config_path = path / "config.json"
    if not config_path.is_file():
        _refuse_gguf(path, field)
        raise BadInput(f"{field}: {path} has no config.json; give a Hugging Face checkpoint folder")
    config = parse_json(config_path.read_bytes(), config_path)
    if not isinstance(config, dict):
        raise BadInput(f"{config_path}: is not a JSON object; fetch it again")
    if quantization_key(config):
        try:
            stored = _read_tensors(path, field, ALL_DTYPES).values()
        except BadInput:
            stored = None
        raise quantization_refusal(path, config, stored)
    stored = _read_tensors(path, field, dtypes)
    if not stored:
        raise BadInput(f"{path}: holds no tensors; fetch the checkpoint again")
    naming = naming_of(stored)
    tensors = {naming.usual(name): entry for name, entry in stored.items()}
    tensors = {name: dataclasses.replace(entry, name=name) for name, entry in tensors.items()}
    if naming != USUAL:
        say(path, f"tensors named {naming.stored('model.norm.weight')} are read as model.norm.weight, and so on")
    return Checkpoint(path, config, without_tied_head(path, config, tensors), field, naming)


def _read_tensors(path: pathlib.Path, field: str, dtypes: Mapping[str, np.dtype]) -> dict[str, TensorEntry]:
    """The parameters of a folder by their stored names."""
    single, index = path / SINGLE_FILE, path / INDEX_FILE
    if single.is_file() and index.is_file():
        raise BadInput(f"{path}: holds both {SINGLE_FILE} and {INDEX_FILE}; remove the one that does not belong")
    left_out: list[str] = []

    def buffer(name: str, shape: Sequence[int]) -> bool:
        if is_buffer(name, shape):
            left_out.append(name)
        return is_buffer(name, shape)

    if index.is_file():
        tensors = _read_sharded(index, dtypes, buffer, left_out)
    elif single.is_file():
        tensors = read_header(single, dtypes, buffer)
    else:
        raise _no_weights(path, field)
    if left_out:
        more = f" and {len(left_out) - 1} more" if len(left_out) > 1 else ""
        say(path, f"{left_out[0]}{more} left out: buffers that follow from config.json, no parameters")
    return tensors


def _no_weights(path: pathlib.Path, field: str) -> BadInput:
    pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in path.glob(pattern))
    if pickles:
        return pickle_refusal(f"{field}: {path}", pickles[0], source=str(path), target=f"{path}-safetensors")
    _refuse_gguf(path, field)
    if (path / ORBAX_FOLDER).is_dir():
        return conversion_refusal(
            f"{field}: {path} is an Orbax folder", path, path.with_name(f"{path.name}-safetensors")
        )
    return BadInput(f"{field}: {path} has neither {SINGLE_FILE} nor {INDEX_FILE}; give a folder with weights")


def _refuse_gguf(path: pathlib.Path, field: str) -> None:
    """Refuses a folder whose weights are a GGUF file."""
    found = next(iter(sorted(path.glob("*.gguf"))), None)
    if found is not None:
        raise conversion_refusal(f"{field}: {path} holds a GGUF file", found, path / found.stem)


def _read_sharded(
    index: pathlib.Path,
    dtypes: Mapping[str, np.dtype],
    buffer: Callable[[str, Sequence[int]], bool],
    left_out: Sequence[str],
) -> dict[str, TensorEntry]:
    content = parse_json(index.read_bytes(), index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadInput(f"{index}: has no weight_map; fetch it again")
    tensors: dict[str, TensorEntry] = {}
    for file_name in sorted(set(map(str, weight_map.values()))):
        inside = pathlib.PurePath(file_name).name == file_name and "\\" not in file_name
        if not inside or not file_name.endswith(".safetensors"):
            raise BadInput(f"{index}: weight_map names {file_name!r}; it may name only safetensors files in its folder")
        shard = index.parent / file_name
        if not shard.is_file():
            raise BadInput(f"{index}: weight_map names {file_name}, which is not in the folder; fetch that file")
        for name, entry in read_header(shard, dtypes, buffer).items():
            if name in tensors:
                raise BadInput(f"{shard}: tensor {name} is also in {tensors[name].file.name}; remove one of the two")
            if name not in weight_map:
                raise BadInput(f"{shard}: holds tensor {name}, which {index.name} does not map; fetch both again")
            if weight_map[name] != file_name:
                raise BadInput(f"{index}: maps {name} to {weight_map[name]}, but {file_name} holds it; fetch it again")
            tensors[name] = entry
    missing = sorted(set(weight_map) - set(tensors) - set(left_out))
    if missing:
        raise BadInput(f"{index}: maps tensor {missing[0]} to {weight_map[missing[0]]}, which lacks it; fetch it again")
    return tensors
