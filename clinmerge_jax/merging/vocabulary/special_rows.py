"""Which rows of special tokens a model never trained. D: hidden size."""

import collections
import dataclasses
import os
from collections.abc import Sequence

import numpy as np

from clinmerge_jax.checkpoint.adapters.adapter import Adapter
from clinmerge_jax.checkpoint.folder import Checkpoint
from clinmerge_jax.checkpoint.formats.safetensors import TensorEntry, read_into
from clinmerge_jax.checkpoint.tokenizers.embedding import vocabulary_tensors
from clinmerge_jax.checkpoint.tokenizers.tokenizer import TokenizerVocabulary
from clinmerge_jax.merging.vocabulary.alignment_sources import AlignmentSources
from clinmerge_jax.merging.vocabulary.row_table import RowTable

# A special token's row counts as never trained if its norm is below this share of the median norm of ordinary rows:
# rows that start at zero, or that only weight decay changes, end far below rows trained on text.
UNTRAINED_NORM = 0.01
# It also does if this many special rows have the same bits: training makes rows differ, untrained ones stay equal.
UNTRAINED_EQUALS = 3

_SAMPLE = 512  # ordinary rows whose median norm is taken


def untrained_special_rows(
    checkpoint: Checkpoint, vocabulary: TokenizerVocabulary, adapter: Adapter | None = None
) -> frozenset[str]:
    """The added tokens whose rows this model never trained.

    These are tokens whose row of the embedding, or of the head where it is a tensor of its own, is zero or has a norm
    under `UNTRAINED_NORM` of the median of ordinary tokens' rows, or has the same bits as the rows of at least
    `UNTRAINED_EQUALS` - 1 other added tokens. One of the two tensors is enough: a token is only useful in a
    chat if the model has learned both to read and to write it.

    Args:
      checkpoint: a model; only these rows and a sample of ordinary ones are read.
      vocabulary: of its tokenizer.
      adapter: a LoRA adapter, added to the rows before they are judged.

    Returns:
      The texts of the tokens.
    """
    places = {token: vocabulary.row(token) for token in vocabulary.added if vocabulary.row(token) >= 0}
    added_ids = {vocabulary.ids[token] for token in vocabulary.added}
    ordinary = [index for index in vocabulary.tokens if index < vocabulary.rows and index not in added_ids]
    sample = ordinary[:: max(1, len(ordinary) // _SAMPLE)]
    untrained: set[str] = set()
    if not places:
        return frozenset()
    for entry in vocabulary_tensors(checkpoint):
        values = _read_rows(entry, list(places.values()), adapter)
        norms = _norms(values)
        floor = UNTRAINED_NORM * float(np.median(_norms(_read_rows(entry, sample, adapter)))) if sample else 0.0
        bits = [row.tobytes() for row in values]
        equal = collections.Counter(bits)
        untrained |= {
            token
            for token, norm, row in zip(places, norms, bits)
            if norm == 0 or norm < floor or equal[row] >= UNTRAINED_EQUALS
        }
    return frozenset(untrained)


def trained_elsewhere(sources: AlignmentSources, table: RowTable) -> tuple[dict[str, list[int]], list[str]]:
    """The rows of special tokens that a model never trained and another did.

    Args:
      sources: the models.
      table: of the result.

    Returns:
      By model with such rows, their rows in the result, in order; and lines of text for the report on models that could
      not be checked.
    """
    untrained: dict[str, set[int]] = {}
    notes = []
    for name, checkpoint in sources.checkpoints.items():
        one = sources.vocabulary(name, convert=bool(table.files))
        if one is None and table.by_id and table.tokenizer is not None:  # assume that its ids mean the same tokens
            one = dataclasses.replace(table.tokenizer, rows=sources.sizes[name])
        if one is None or not one.added or not table.tokens:
            continue
        if not all(entry.file.is_file() for entry in vocabulary_tensors(checkpoint)):
            notes.append(f"{checkpoint.label} is not made yet, so its special rows are not looked at")
            continue
        tokens = untrained_special_rows(checkpoint, one, sources.adapters.get(name))
        ids = one.ids if table.by_id else table.ids  # by id, the same row may have another name in the result
        untrained[name] = {ids[token] for token in tokens if ids.get(token, table.size) < table.size}
    found = {
        name: [
            row
            for row in sorted(rows)
            if row in table.tokens
            and any(
                table.rows[other][row] >= 0 and row not in untrained.get(other, ()) for other in sources.checkpoints
            )
        ]
        for name, rows in untrained.items()
    }
    return {name: rows for name, rows in found.items() if rows}, notes


def _read_rows(entry: TensorEntry, rows: Sequence[int], adapter: Adapter | None) -> np.ndarray:
    """Reads rows of a tensor, [rows, D], in its own dtype unless an adapter changes them."""
    values = np.empty((len(rows), entry.shape[-1]), entry.dtype)
    nbytes = entry.shape[-1] * entry.dtype.itemsize
    descriptor = os.open(entry.file, os.O_RDONLY)
    try:
        for place, row in enumerate(rows):
            read_into(descriptor, entry.offset + row * nbytes, memoryview(values[place].view(np.uint8)), entry.file)
    finally:
        os.close(descriptor)
    if adapter is None or not adapter.changes(entry.name):
        return values
    return np.concatenate([adapter.apply_rows(entry.name, row, values[[place]]) for place, row in enumerate(rows)])


def _norms(values: np.ndarray) -> np.ndarray:
    return np.linalg.norm(values.astype(np.float64), axis=-1)
