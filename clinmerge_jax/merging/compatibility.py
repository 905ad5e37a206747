"""Checks that two checkpoints can be merged: tensors, architecture, vocabulary."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping

from absl import logging

from clinmerge_jax.checkpoint.folder import Checkpoint
from clinmerge_jax.checkpoint.tokenizers.embedding import has_vocabulary_rows
from clinmerge_jax.checkpoint.tokenizers.tokenizer import TOKENIZER_FILE, TokenizerVocabulary, read_token_ids
from clinmerge_jax.errors import BadInput
from clinmerge_jax.merging.recipes.schedule import layer_of

# Models that differ in one of these cannot be merged, even if all shapes agree.
_SAME_CONFIG = ("model_type", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_act")


def check_compatible(
    first: Checkpoint,
    other: Checkpoint,
    *,
    layers: bool = True,
    vocabulary: bool = True,
    remedy: str = "give models of one vocabulary",
) -> None:
    """Refuses two models that cannot be merged, and warns of other config fields in which they differ.

    Args:
      first: one model.
      other: another.
      layers: whether both must have the same number of layers; otherwise either may lack tensors of layers.
      vocabulary: whether a token id must mean the same in both; otherwise embeddings may differ in their rows.
      remedy: how to fix a vocabulary that differs, for the message.

    Raises:
      BadInput: they differ in tensors, shapes, architecture, or in what a token id means.
    """
    for key in _SAME_CONFIG:
        if key == "num_hidden_layers" and not layers:
            continue
        if None in (first.config.get(key), other.config.get(key)):
            continue  # the architecture's default, which is not known here
        if first.config[key] != other.config[key]:
            raise BadInput(
                f"{other.label}: {key} is {other.config.get(key)!r} where {first.label} has {first.config.get(key)!r};"
                " merge models of one architecture"
            )
    for key in (
        "rope_theta", "rope_scaling", "rope_parameters", "rms_norm_eps", "max_position_embeddings", "sliding_window",
        "use_sliding_window",
    ):  # fmt: skip
        if key in first.config and key in other.config and first.config[key] != other.config[key]:
            logging.warning("%s and %s differ in %s; the result takes %s's", first.label, other.label, key, first.label)
    for one, two in ((first, other), (other, first)):
        mismatched = (name for name in one.tensors if name not in two.tensors and (layers or layer_of(name) is None))
        extra = next(mismatched, None)
        if extra is not None:
            raise BadInput(
                f"{two.label}: {two.path} lacks tensor {extra}, which {one.label} has; merge models of one architecture"
            )
    for name, entry in first.tensors.items():
        if name not in other.tensors:
            continue
        shape = other.tensors[name].shape
        if not vocabulary and has_vocabulary_rows(name) and shape[1:] == entry.shape[1:]:
            continue
        if shape != entry.shape:
            raise BadInput(
                f"{other.label}: tensor {name} has shape {list(shape)} where {first.label} has {list(entry.shape)};"
                " merge models of one architecture and vocabulary"
            )
    if vocabulary:
        check_same_tokens(first, other, remedy)


def check_same_tokens(first: Checkpoint, other: Checkpoint, remedy: str) -> None:
    """Refuses two tokenizers in which an id means different tokens; warns if either model has no tokenizer.json.

    Added tokens may have different names at the same id, because reserved tokens are often repurposed.

    Args:
      first: one model.
      other: another.
      remedy: how to fix it, for the message.

    Raises:
      BadInput: naming a token and its ids.
    """
    known = [read_token_ids(checkpoint.path) for checkpoint in (first, other)]
    if None in known:
        logging.warning(
            "%s and %s: without %s in both, ids are assumed to mean the same tokens",
            first.label,
            other.label,
            TOKENIZER_FILE,
        )
        return
    one, two = (TokenIds(checkpoint.label, *found) for checkpoint, found in zip((first, other), known))
    renamed = refuse_other_tokens(one, two, remedy)
    if renamed:
        _, ours, theirs = renamed[0]
        logging.warning("%s names %s %s; the result keeps the name in %s", other.label, ours, theirs, first.label)


@dataclasses.dataclass(frozen=True)
class TokenIds:
    """The token ids of one model.

    Attributes:
      label: its name in messages.
      ids: id by token, including added tokens.
      added: the added tokens.
    """

    label: str
    ids: Mapping[str, int]
    added: Collection[str]

    @property
    def tokens(self) -> dict[int, str]:
        """Text by id."""
        return {index: token for token, index in self.ids.items()}


def refuse_other_tokens(
    one: TokenIds | TokenizerVocabulary, two: TokenIds | TokenizerVocabulary, remedy: str
) -> list[tuple[int, str, str]]:
    """Refuses two models in which an id means different tokens.

    Args:
      one: the token ids of one model.
      two: those of another.
      remedy: how to fix it, for the message.

    Returns:
      Id, token of `one` and token of `two` for the added tokens that only have different names.

    Raises:
      BadInput: a token has another id in `two`, or an id means another token that is not an added one.
    """
    moved = _moved_token(one.ids, two.ids)
    if moved is not None:
        raise BadInput(
            f"{two.label}: token {moved!r} has id {two.ids[moved]} there and {one.ids[moved]} in {one.label}; {remedy}"
        )
    renamed = list(differing_tokens(one.tokens, two.tokens))
    for index, token, theirs in renamed:
        if token not in one.added or theirs not in two.added:
            raise BadInput(f"{two.label}: id {index} is {theirs!r} there and {token!r} in {one.label}; {remedy}")
    return renamed


def _moved_token(one: Mapping[str, int], two: Mapping[str, int]) -> str | None:
    """The token with the lowest id in `one` that has another id in `two`; None if there is none.

    Args:
      one: id by token.
      two: id by token.
    """
    moved = (token for token, index in one.items() if two.get(token, index) != index)
    return min(moved, key=one.get, default=None)


def differing_tokens(one: Mapping[int, str], two: Mapping[int, str]) -> Iterator[tuple[int, str, str]]:
    """Yields (id, token in `one`, token in `two`) for every id at which two tokenizers have different tokens.

    Args:
      one: token by id.
      two: token by id.
    """
    for index, token in one.items():
        theirs = two.get(index, token)
        if theirs != token:
            yield index, token, theirs
