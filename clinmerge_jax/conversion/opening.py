"""Opens a location as a Source: a Hugging Face folder, a GGUF file, a llama2.c checkpoint or an Orbax folder."""

import os
import pathlib
from collections.abc import Mapping

import numpy as np

from clinmerge_jax import provenance
from clinmerge_jax.checkpoint.card import front_matter
from clinmerge_jax.checkpoint.folder import Checkpoint, open_checkpoint, resolve
from clinmerge_jax.checkpoint.formats import gguf
from clinmerge_jax.checkpoint.formats.safetensors import TensorEntry
from clinmerge_jax.checkpoint.parameters.orbax_folder import is_orbax
from clinmerge_jax.checkpoint.parameters.params import llama_config
from clinmerge_jax.checkpoint.tokenizers.tokenizer import has_tokenizer, tokenizer_files
from clinmerge_jax.conversion import gguf_model, llama2c, orbax_source
from clinmerge_jax.conversion.source import InputFiles, Source, SourceTensor
from clinmerge_jax.errors import BadInput

FIELD, TOKENIZER_FIELD = "config.source", "config.tokenizer"


def open_source(location: str, tokenizer: str) -> Source:
    """Opens the model to convert.

    Args:
      location: a file, or any location that `folder.resolve` accepts.
      tokenizer: a folder whose tokenizer is used in place of the source's own, or llama2.c's tokenizer file; "" for
        none.

    Raises:
      BadInput: there is no such model, it is damaged, or the tokenizer is missing or not usable.
    """
    path = pathlib.Path(os.path.expanduser(location)) if location else pathlib.Path()
    if path.is_file():
        if gguf.is_gguf(path) or path.suffix == ".gguf":
            return gguf_model.open_source(path, _tokenizer_folder(tokenizer))
        if not tokenizer or not os.path.isfile(os.path.expanduser(tokenizer)):
            raise BadInput(
                f"{FIELD}: {path} is a file but not a GGUF file; give a folder, or for a llama2.c checkpoint its"
                f" tokenizer file with --{TOKENIZER_FIELD}"
            )
        return llama2c.open_source(path, pathlib.Path(os.path.expanduser(tokenizer)))
    folder = resolve(location, FIELD)
    if is_orbax(folder):
        return orbax_source.open_source(folder, _tokenizer_folder(tokenizer))
    return _from_checkpoint(open_checkpoint(location, FIELD), _tokenizer_folder(tokenizer))


def _tokenizer_folder(location: str) -> dict[str, pathlib.Path] | None:
    """The tokenizer files of a folder, including its chat template; None if no folder is named."""
    if not location:
        return None
    folder = resolve(location, TOKENIZER_FIELD)
    if not has_tokenizer(folder):
        raise BadInput(f"{TOKENIZER_FIELD}: {folder} has no tokenizer files; give a folder with a tokenizer.json")
    return tokenizer_files(folder)


def _from_checkpoint(checkpoint: Checkpoint, tokenizer: Mapping[str, pathlib.Path] | None) -> Source:
    """A Hugging Face folder as a Source."""
    files = InputFiles(checkpoint.files)
    small_files = {path.name: path for path in checkpoint.carried_files()}
    if tokenizer is not None:
        own = tokenizer_files(checkpoint.path)
        small_files = {name: path for name, path in small_files.items() if name not in own} | dict(tokenizer)
    large = [checkpoint.path / "config.json", *checkpoint.files]
    return Source(
        format="Hugging Face",
        path=checkpoint.path,
        config=checkpoint.config,
        tensors={name: _tensor(entry, files) for name, entry in checkpoint.tensors.items()},
        small_files=small_files,
        files=files,
        llama=lambda: llama_config(checkpoint),
        inputs=provenance.file_fingerprint(checkpoint.path, large, small_files),
        licence=front_matter(checkpoint.path).get("license"),
        naming=checkpoint.naming,
    )


def _tensor(entry: TensorEntry, files: InputFiles) -> SourceTensor:
    rows = entry.shape[0] if entry.shape else 1
    columns = entry.size // max(1, rows)
    row_bytes = columns * entry.dtype.itemsize

    def read(first: int, rows: int) -> np.ndarray:
        raw = files.read(entry.file, entry.offset + first * row_bytes, rows * row_bytes)
        return raw.view(entry.dtype).reshape(rows, columns)

    return SourceTensor(entry.name, entry.shape, str(entry.dtype), entry.dtype, read)
