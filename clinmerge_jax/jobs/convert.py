"""Converts a model: GGUF, llama2.c, Orbax or Hugging Face in, a Hugging Face or an Orbax folder out.

Opens the source without its weights, checks everything, copies the tensors piece by piece, and only then moves the
finished folder into place.
"""

import json
import math
import pathlib
from collections.abc import Mapping

import numpy as np
import tqdm
from absl import logging
from ml_collections import ConfigDict

from clinmerge_jax import provenance
from clinmerge_jax.checkpoint.card import conversion_card, shown_name
from clinmerge_jax.checkpoint.files import INDEX_FILE, ORBAX_FOLDER
from clinmerge_jax.checkpoint.formats.safetensors import DTYPES
from clinmerge_jax.checkpoint.output import OutputFolder, OutputState
from clinmerge_jax.checkpoint.parameters.orbax_folder import save_orbax
from clinmerge_jax.checkpoint.parameters.weight_files import config_with_dtype, index_json, split_into_shards
from clinmerge_jax.checkpoint.tokenizers.tokenizer import TOKENIZER_FILE, read_token_ids
from clinmerge_jax.conversion.opening import open_source
from clinmerge_jax.conversion.source import Source
from clinmerge_jax.conversion.writing import Rounding, read_params, write_files
from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.parameters import parameters

FORMATS = ("huggingface", "orbax")
_DTYPES = {str(dtype): dtype for dtype in DTYPES.values()}


def run(config: ConfigDict) -> None:
    """Runs the conversion that the config describes; see configs/convert.py for its fields.

    Raises:
      BadInput: the model does not exist, it or its tokenizer is damaged, it is not a Llama, or a field is wrong.
    """
    if config.format not in FORMATS:
        raise BadInput(f"config.format: {config.format!r} is unknown; choose from {', '.join(FORMATS)}")
    if config.dtype not in ("", *_DTYPES):
        raise BadInput(f"config.dtype: {config.dtype!r} is unknown; choose from {', '.join(_DTYPES)}")
    if not 0 < config.max_shard_gb < math.inf:
        raise BadInput(f"config.max_shard_gb: is {config.max_shard_gb}; give a size over 0, such as 5.0")
    source = open_source(config.source, config.tokenizer)
    with source.files:
        _convert(config, source)


def _convert(config: ConfigDict, source: Source) -> None:
    wanted = _DTYPES.get(config.dtype, source.dtype)
    dtypes = {name: wanted or tensor.dtype for name, tensor in source.tensors.items()}
    llama = source.llama() if config.format == "orbax" else None
    if llama is not None:
        _check_leaves(source, dtypes, llama)
    tokenizer = source.small_files.get(TOKENIZER_FILE)
    if isinstance(tokenizer, pathlib.Path):
        read_token_ids(tokenizer.parent)  # raises if it is damaged
    nbytes = sum(tensor.size * dtypes[name].itemsize for name, tensor in source.tensors.items())
    credentialed = provenance.is_credentialed(config.credentialed, [source])
    identity = {
        "job": "convert",
        "format": config.format,
        "dtype": config.dtype,
        "max_shard_gb": config.max_shard_gb,
        "credentialed": credentialed,
        "environment": provenance.environment(),
        "inputs": {"source": source.inputs},
    }
    with OutputFolder(config.output, identity, config.overwrite, provenance.same_result) as output:
        output.refuse_overlap({"config.source": source.path})
        state = output.open()
        if state is OutputState.FINISHED:
            print(output.finished_text("same source, format and dtype", "Its source is described in"))
            return
        if state is OutputState.RESUMED:
            logging.info("continuing the interrupted conversion in %s", output.partial)
        else:
            output.check_space(nbytes)
        with _bar(nbytes) as bar:
            if llama is None:
                rounding = _write_huggingface(config, source, dtypes, output, bar)
            else:
                params, rounding = read_params(source, llama, dtypes, bar.update)
                save_orbax(params, output.partial)
        for name, content in source.small_files.items():
            if isinstance(content, bytes):
                output.write_bytes(name, content)
            else:
                output.copy(content, name)
        said = _rounding_text(rounding, dtypes)
        name = shown_name(config.source) + (f" ({source.title})" if source.title else "")
        facts = [f"Format of the source: {source.format}", *source.facts, said]
        card = conversion_card(output.target.name, name, source.licence, facts, credentialed)
        output.write_text("README.md", card)
        output.write_text("config.json", json.dumps(_config_json(source.config, dtypes), indent=1) + "\n")
        output.commit(
            {
                **provenance.environment(),
                "sha256": {"source": source.sha256()},
                "credentialed": credentialed,
                "stored": {name: tensor.stored for name, tensor in source.tensors.items()},
                "rounded_values": rounding.changed,
                "largest_relative_rounding": rounding.largest,
            }
        )
    print(f"The model is {output.target} ({tqdm.tqdm.format_sizeof(nbytes, 'B')}). {said}")
    if llama is None:
        print(f"Next: name it as a model, as in --config=configs/generate.py --config.model={output.target}")
    else:
        print(
            f"Next: orbax.checkpoint.v1.load({str(output.target / ORBAX_FOLDER)!r}); the tree is described in"
            " clinmerge_jax/checkpoint/parameters/orbax_folder.py"
        )


def _check_leaves(source: Source, dtypes: Mapping[str, np.dtype], llama: LlamaConfig) -> None:
    """Refuses a parameter whose layers would differ in dtype: Params holds them as one array."""
    for row in parameters(llama):
        found = {str(dtypes[name]) for name in row.names(llama)}
        if len(found) > 1:
            raise BadInput(
                f"config.source: {source.path} has {row.name.format(layer='N')} in {' and '.join(sorted(found))};"
                " give one with --config.dtype"
            )


def _write_huggingface(
    config: ConfigDict, source: Source, dtypes: Mapping[str, np.dtype], output: OutputFolder, bar: tqdm.tqdm
) -> Rounding:
    sizes = {name: tensor.size * dtypes[name].itemsize for name, tensor in source.tensors.items()}
    files = split_into_shards(list(sizes.items()), int(config.max_shard_gb * 1e9))
    rounding = write_files(source, dtypes, files, output, bar.update)
    index = index_json(files, sum(sizes.values()), source.naming)
    if index:
        output.write_text(INDEX_FILE, index)
    return rounding


def _config_json(raw: Mapping, dtypes: Mapping[str, np.dtype]) -> dict:
    """config.json with the dtype of the tensors, if all have the same."""
    found = set(dtypes.values())
    return config_with_dtype(raw, found.pop()) if len(found) == 1 else dict(raw)


def _rounding_text(rounding: Rounding, dtypes: Mapping[str, np.dtype]) -> str:
    names = " and ".join(sorted({str(dtype) for dtype in dtypes.values()}))
    if not rounding.changed:
        return f"Stored in {names}; no value was rounded."
    return (
        f"Stored in {names}; {rounding.changed:,} of {rounding.values:,} values were rounded, by {rounding.largest:.2g}"
        " of their size at most."
    )


def _bar(nbytes: int) -> tqdm.tqdm:
    return tqdm.tqdm(total=nbytes, desc="convert", unit="B", unit_scale=True, mininterval=0.5, leave=False)
