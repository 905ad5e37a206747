"""The union of tokenizers: one that encodes text as each model's own tokenizer does, where that is possible."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers

from clinmerge_jax.checkpoint.formats.safetensors import parse_json
from clinmerge_jax.checkpoint.tokenizers.tokenizer import (
    ADDED_FILE,
    OLDER_FILES,
    SETTINGS_FILE,
    TOKEN_FLAGS,
    TOKENIZER_FILE,
    TokenizerVocabulary,
    json_bytes,
    listed_tokens,
    settings_of,
    tokenizer_files,
)
from clinmerge_jax.errors import BadInput


@dataclasses.dataclass(frozen=True, eq=False)
class Union:
    """A tokenizer with the added tokens of several tokenizers.

    Attributes:
      tokenizer: the result: the first tokenizer's tokens keep their ids, the others' follow in order.
      files: its files by name.
      added: the tokens that the first one lacked, in the order of their ids.
      notes: how it differs from one of them, as lines of text for the report.
    """

    tokenizer: TokenizerVocabulary
    files: dict[str, bytes | pathlib.Path]
    added: list[str]
    notes: list[str]


def check_union(start: TokenizerVocabulary, others: Sequence[TokenizerVocabulary]) -> list[str]:
    """Refuses tokenizers that split text in different ways, because no single tokenizer matches all of them.

    Args:
      start: the first one.
      others: the others.

    Returns:
      How the union differs from one of them, as lines of text for the report.

    Raises:
      BadInput: they split text differently; the message names two of them and how they differ.
    """
    notes = []
    for one in others:
        if one.content == start.content != b"":
            continue
        reason = _difference(start, one)
        if reason:
            raise BadInput(
                f"config.tokenizer: no union of {start.label} and {one.label} encodes text as each of them does"
                f" ({reason}); give base, or the model whose tokenizer the result should have"
            )
        if start.definition.get("post_processor") != one.definition.get("post_processor"):
            notes.append(f"tokens put around a text (such as the BOS) are {start.label}'s, not {one.label}'s")
    return notes


def unite(start: TokenizerVocabulary, others: Sequence[TokenizerVocabulary]) -> Union:
    """Adds the others' further tokens to a tokenizer, each matched in text as in the first tokenizer that has it.

    Args:
      start: the first one.
      others: the others, which must have passed `check_union`.

    Raises:
      BadInput: the first one's ids have gaps.
    """
    notes = []
    backend = tokenizers.Tokenizer.from_str(start.backend.to_str())
    taken = dict(start.added)
    for one in others:
        clashing = [token for token, added in one.added.items() if _flags(taken.get(token, added)) != _flags(added)]
        if clashing:
            notes.append(f"{listed_tokens(clashing)} of {one.label} are found in text as an earlier model does")
        backend.add_tokens([added for token, added in one.added.items() if token not in taken])
        taken = {**one.added, **taken}
    ids = backend.get_vocab(with_added_tokens=True)
    if len(set(ids.values())) < len(ids):
        raise BadInput(
            f"config.tokenizer: {start.label}'s tokenizer has gaps among its ids, where added tokens would collide;"
            " give base, or the model whose tokenizer the result should have"
        )
    result = dataclasses.replace(start, ids=ids, backend=backend, rows=0, content=b"")
    new = [token for token in result.tokens.values() if token not in start.ids]
    files = tokenizer_files(start.path)
    if backend.to_str() != start.backend.to_str():
        files |= _extended_files(start, backend, {token: ids[token] for token in new}, files)
    return Union(result, files, new, notes)


def _difference(first: TokenizerVocabulary, other: TokenizerVocabulary) -> str:
    """How two tokenizers differ in splitting text, apart from added tokens; "" where they do not."""
    one, two = first.definition, other.definition
    models = one["model"], two["model"]
    kinds = [model.get("type") for model in models]
    if kinds[0] != kinds[1]:
        return f"one is {kinds[0]}, the other {kinds[1]}"
    words = [_pieces(model) for model in models]
    alone = [word for word in words[0] if word not in words[1] and word not in first.added]
    alone += [word for word in words[1] if word not in words[0] and word not in other.added]
    if alone:
        return f"{listed_tokens(alone, 'word')} that are not added tokens are in only one"
    both = sorted(word for word in set(first.added) ^ set(other.added) if word in words[0] and word in words[1])
    if both:
        return f"{listed_tokens(both, 'word')} of both are added tokens in only one"
    scored = next((word for word in words[0] if words[1].get(word, words[0][word]) != words[0][word]), None)
    if scored is not None:
        return f"the score of {scored!r} differs"
    merges = [model.get("merges", []) for model in models]
    if merges[0] != merges[1]:
        place = next((i for i, pair in enumerate(zip(*merges)) if pair[0] != pair[1]), min(map(len, merges)))
        return f"their BPE merges differ from number {place + 1} on"
    for key in sorted({*models[0], *models[1]} - {"vocab", "merges", "unk_id"}):
        if models[0].get(key) != models[1].get(key):
            return f"{key} is {models[0].get(key)!r} in one and {models[1].get(key)!r} in the other"
    for part in ("normalizer", "pre_tokenizer"):
        if one.get(part) != two.get(part):
            return f"their {part} differs"
    return ""


def _pieces(model: Mapping[str, Any]) -> dict[str, float]:
    """The tokenizer model's own tokens, with their scores if it has any."""
    vocabulary = model["vocab"]
    return dict.fromkeys(vocabulary, 0.0) if isinstance(vocabulary, dict) else dict(map(tuple, vocabulary))


def _flags(token: tokenizers.AddedToken) -> tuple[bool, ...]:
    return tuple(getattr(token, flag) for flag in TOKEN_FLAGS)


def _described(token: tokenizers.AddedToken) -> dict[str, Any]:
    """An added token in the format of tokenizer_config.json."""
    return {"content": token.content, **{flag: getattr(token, flag) for flag in (*TOKEN_FLAGS, "special")}}


def _extended_files(
    start: TokenizerVocabulary,
    backend: tokenizers.Tokenizer,
    new: Mapping[str, int],
    files: Mapping[str, bytes | pathlib.Path],
) -> dict[str, bytes]:
    """The files of a tokenizer that change when tokens are added to it."""
    changed = {TOKENIZER_FILE: backend.to_str(pretty=True).encode()}
    settings = settings_of(start.path)
    if isinstance(settings.get("added_tokens_decoder"), dict):
        by_id = backend.get_added_tokens_decoder()
        settings["added_tokens_decoder"] = {str(index): _described(by_id[index]) for index in sorted(by_id)}
        changed[SETTINGS_FILE] = json_bytes(settings)
    if any(name in files for name in (ADDED_FILE, *OLDER_FILES)):  # readers of these find the other tokens there
        file = start.path / ADDED_FILE
        before = parse_json(file.read_bytes(), file) if file.is_file() else {}
        changed[ADDED_FILE] = json_bytes({**before, **new})
    return changed
