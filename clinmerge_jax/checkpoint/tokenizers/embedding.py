"""The tensors with one row for each token: the input embedding, and the head if it is untied."""

from clinmerge_jax.checkpoint.folder import Checkpoint
from clinmerge_jax.checkpoint.formats.safetensors import TensorEntry
from clinmerge_jax.errors import BadInput

_EMBEDDING, _HEAD = "embed_tokens.weight", "lm_head.weight"


def has_vocabulary_rows(name: str) -> bool:
    """Whether a tensor of this name has one row for each token: the input embedding and the head."""
    return name.endswith((_EMBEDDING, _HEAD))


def vocabulary_tensors(checkpoint: Checkpoint) -> list[TensorEntry]:
    """The embedding, and the head if it is untied."""
    return [entry for name, entry in checkpoint.tensors.items() if has_vocabulary_rows(name)]


def vocabulary_rows(checkpoint: Checkpoint) -> int:
    """The number of rows of the embedding and the head.

    Raises:
      BadInput: there is no embedding, or embedding and head differ in rows.
    """
    sizes = {entry.name: entry.shape[0] if entry.shape else 0 for entry in vocabulary_tensors(checkpoint)}
    if not any(name.endswith(_EMBEDDING) for name in sizes):
        raise BadInput(
            f"{checkpoint.label}: {checkpoint.path} has no tensor {_EMBEDDING}; vocabularies are aligned by it, so"
            " give a decoder with an embedding"
        )
    if len(set(sizes.values())) > 1:
        described = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise BadInput(
            f"{checkpoint.label}: {checkpoint.path} has different numbers of vocabulary rows ({described}); save the"
            " model again"
        )
    return next(iter(sizes.values()))
