"""The token of each row of the result, and which of its own rows each model has for that token.

Tokens with different ids are aligned by text, never by row number. V: rows of the result.
"""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging

from clinmerge_jax.checkpoint.folder import Checkpoint, resolve
from clinmerge_jax.checkpoint.formats.safetensors import parse_json
from clinmerge_jax.checkpoint.tokenizers.tokenizer import (
    SETTINGS_FILE,
    TokenizerVocabulary,
    listed_tokens,
    read_tokenizer,
    settings_of,
    tokenizer_files,
)
from clinmerge_jax.errors import BadInput
from clinmerge_jax.merging.compatibility import differing_tokens, refuse_other_tokens
from clinmerge_jax.merging.vocabulary.alignment_sources import AlignmentSources
from clinmerge_jax.merging.vocabulary.chat_templates import TEMPLATE_FILE, template_of
from clinmerge_jax.merging.vocabulary.tokenizer_union import check_union, unite

_REMEDY = "set the tokenizer to union, base or a model's location"


@dataclasses.dataclass(eq=False)
class RowTable:
    """The rows of the result before missing rows are filled.

    Attributes:
      size: V.
      tokens: text by id.
      rows: by model, int32 [V], -1 for rows that the model lacks.
      tokenizer: the result's; None where no tokenizer is known.
      files: the tokenizer files of the result, by name; empty where the leading model's stay as they are.
      notes: what was done, as lines of text for the report.
      by_id: whether a token's row is its id in every model.
    """

    size: int
    tokens: Mapping[int, str]
    rows: dict[str, np.ndarray]
    tokenizer: TokenizerVocabulary | None
    files: dict[str, bytes | pathlib.Path]
    notes: list[str]
    by_id: bool

    @functools.cached_property
    def ids(self) -> dict[str, int]:
        """Id by token."""
        return {token: index for index, token in self.tokens.items()}


def rows_by_agreement(sources: AlignmentSources, multiple: int = 0, *, by_name: bool = False) -> RowTable:
    """Keeps every row at its place, for models that agree except in padding rows and names of special tokens.

    Args:
      sources: the models.
      multiple: V is padded to a multiple of it; 0 for no padding.
      by_name: whether every model needs a tokenizer, because the recipe names single tokens.

    Raises:
      BadInput: they do not agree, or a tokenizer that is needed to check this is missing.
    """
    convert = by_name or not sources.same_size
    known = {name: sources.vocabulary(name, convert=convert) for name in sources.checkpoints}
    without = [sources.checkpoints[name].label for name, one in known.items() if one is None]
    if without and by_name:
        raise BadInput(f"{without[0]}: has no tokenizer, which rows of single tokens need; add its tokenizer files")
    if without and not sources.same_size:
        raise BadInput(
            f"{without[0]}: has no tokenizer to align by, and embeddings have different rows"
            f" ({sources.described_sizes}); add its tokenizer files, or set cut_to_common"
        )
    for one, two in itertools.combinations([one for one in known.values() if one is not None], 2):
        _refuse_disagreement(one, two, sources)
    lead = known[sources.leading]
    if sources.same_size:
        size = sources.sizes[sources.leading]
        padded = _padded(size, multiple)
        notes = [f"{size} rows are padded with zeros to {padded}"] if padded != size else []
        return RowTable(padded, _tokens_below(size, lead), _own_places(sources, padded), lead, {}, notes, by_id=True)
    size = _padded(max(sources.sizes[sources.leading], max(lead.tokens) + 1), multiple)
    rows = _own_places(sources, size)
    used = np.isin(np.arange(size), list(lead.tokens))
    for own in rows.values():
        own[~used] = -1
    note = (
        f"the same {len(lead.ids)} tokens in all models, and rows beyond them in different numbers"
        f" ({sources.described_sizes}): the result has {size} rows, those beyond the tokens are zeros"
    )
    return RowTable(size, lead.tokens, rows, lead, {}, [note], by_id=True)


def rows_cut_to_common(sources: AlignmentSources, multiple: int = 0) -> RowTable:
    """Cuts embeddings of different sizes to the rows that all have, whatever is in the others.

    Args:
      sources: the models.
      multiple: V is padded to a multiple of it; 0 for no padding.

    Raises:
      BadInput: the id of a common row means different tokens.
    """
    size = min(sources.sizes.values())
    present = [one for one in map(sources.vocabulary, sources.checkpoints) if one is not None]
    notes = [f"embeddings of {sources.described_sizes} rows are cut to the first {size}"]
    if len(present) < len(sources.checkpoints):
        notes.append("not every model has a tokenizer, so ids are assumed to mean the same tokens")
    for one in present:
        lost = [token for index, token in one.tokens.items() if index >= size]
        if lost:
            notes.append(f"{one.label} loses {listed_tokens(lost)}")
        for index, token, theirs in differing_tokens(one.tokens, present[0].tokens):
            if index < size and not (token in one.added and theirs in present[0].added):
                raise BadInput(
                    f"{one.label}: id {index} is {token!r} there and {theirs!r} in {present[0].label}, so cutting"
                    f" would mix them; {_REMEDY} instead of cut_to_common"
                )
    for note in notes:
        logging.warning("vocabulary: %s", note)
    lead = sources.vocabulary(sources.leading)
    rows = _own_places(sources, _padded(size, multiple))
    for own in rows.values():
        own[size:] = -1
    return RowTable(_padded(size, multiple), _tokens_below(size, lead), rows, lead, {}, notes, by_id=True)


def rows_by_tokenizer(sources: AlignmentSources, tokenizer: str, multiple: int = 0) -> RowTable:
    """Aligns rows by the tokens' texts to the ids of the tokenizer that is asked for.

    Args:
      sources: the models, each with a tokenizer.
      tokenizer: "union", "base", a model, or a folder with a tokenizer; see `alignment.align`.
      multiple: V is padded to a multiple of it; 0 for no padding.

    Raises:
      BadInput: a tokenizer is missing or does not load, or two of them have no exact union.
    """
    known = {name: sources.must_have(name) for name in sources.checkpoints}
    first = sources.base or sources.leading
    if tokenizer == "union":
        return _rows_by_union(sources, known, known[first], multiple)
    if tokenizer == "base":
        result, title = known[first], f"{known[first].label}'s"
    elif tokenizer in known:
        result, title = known[tokenizer], f"{known[tokenizer].label}'s"
    else:
        path = resolve(tokenizer, "config.tokenizer")
        result, title = read_tokenizer(path, "config.tokenizer"), f"{path.name}'s"
    if not _all_at(known, result, sources):
        files, kept = _with_template(tokenizer_files(result.path), sources.lead)
        notes = [f"the tokenizer is {title}, of {len(result.ids)} tokens", *kept]
        return _rows_by_text(known, result, files, notes, multiple)
    table = rows_by_agreement(sources, multiple)
    table.tokenizer = result
    lead = known[sources.leading]
    same_files = result.content == lead.content != b"" and settings_of(result.path) == settings_of(lead.path)
    if not same_files and result.path != lead.path:
        table.files, kept = _with_template(tokenizer_files(result.path), sources.lead)
        table.notes += [*kept, f"all models have the same tokens; the tokenizer is {title}"]
    return table


def _rows_by_union(
    sources: AlignmentSources,
    known: Mapping[str, TokenizerVocabulary],
    start: TokenizerVocabulary,
    multiple: int,
) -> RowTable:
    others = [one for one in known.values() if one is not start]
    differences = check_union(start, others)
    if _all_at(known, start, sources):
        return rows_by_agreement(sources, multiple)
    union = unite(start, others)
    files, kept = _with_template(union.files, sources.lead)
    title = f"the tokenizer is {start.label}'s, of {len(start.ids)} tokens"
    if union.added:
        title += f", with {listed_tokens(union.added)} added"
    notes = [title, *differences, *union.notes, *kept]
    return _rows_by_text(known, union.tokenizer, files, notes, multiple)


def _rows_by_text(
    known: Mapping[str, TokenizerVocabulary],
    result: TokenizerVocabulary,
    files: dict[str, bytes | pathlib.Path],
    notes: Sequence[str],
    multiple: int,
) -> RowTable:
    size = _padded(max(result.tokens) + 1, multiple)
    rows = {name: np.full(size, -1, np.int32) for name in known}
    for name, one in known.items():
        for index, token in result.tokens.items():
            rows[name][index] = one.row(token)
    notes = list(notes)
    for one in known.values():
        dropped = [token for token in one.tokens.values() if token not in result.ids]
        if dropped:
            notes.append(f"{listed_tokens(dropped)} of {one.label} are not in the result")
    if size > len(result.tokens):
        notes.append(f"{size - len(result.tokens)} of {size} rows belong to no token and are zeros")
    return RowTable(size, result.tokens, rows, result, files, notes, by_id=False)


def _refuse_disagreement(one: TokenizerVocabulary, two: TokenizerVocabulary, sources: AlignmentSources) -> None:
    """Refuses models in which an id means different tokens, or of different sizes with different sets of tokens."""
    refuse_other_tokens(one, two, f"{_REMEDY} to align them")
    ids = sorted(set(one.tokens) ^ set(two.tokens))
    if ids and not sources.same_size:
        owner = one if ids[0] in one.tokens else two
        raise BadInput(
            f"{two.label}: embeddings have different rows ({sources.described_sizes}), and {len(ids)} tokens such as"
            f" {owner.tokens[ids[0]]!r} are only in {owner.label}; {_REMEDY} to align them, or set cut_to_common"
        )


def _all_at(known: Mapping[str, TokenizerVocabulary], result: TokenizerVocabulary, sources: AlignmentSources) -> bool:
    """Whether every model has the tokenizer's tokens at the same ids, and all have the same number of rows."""
    return sources.same_size and all(one.ids == result.ids for one in known.values())


def _padded(size: int, multiple: int) -> int:
    """The number of rows rounded up to a multiple."""
    return -(-size // multiple) * multiple if multiple else size


def _own_places(sources: AlignmentSources, size: int) -> dict[str, np.ndarray]:
    """Every row at its own place, -1 where a model lacks it."""
    places = np.arange(size, dtype=np.int32)
    return {name: np.where(places < rows, places, -1).astype(np.int32) for name, rows in sources.sizes.items()}


def _tokens_below(size: int, vocabulary: TokenizerVocabulary | None) -> dict[int, str]:
    return {index: token for index, token in vocabulary.tokens.items() if index < size} if vocabulary else {}


def _with_template(
    files: Mapping[str, bytes | pathlib.Path], lead: Checkpoint
) -> tuple[dict[str, bytes | pathlib.Path], list[str]]:
    """Adds the leading model's chat template to tokenizer files without one, with a note on it."""
    settings = files.get(SETTINGS_FILE)
    own = TEMPLATE_FILE in files
    if settings is not None and not own:
        content = parse_json(settings if isinstance(settings, bytes) else settings.read_bytes(), SETTINGS_FILE)
        own = isinstance(content, dict) and bool(content.get("chat_template"))
    template = "" if own else template_of(lead)
    if not template:
        return dict(files), []
    note = f"the tokenizer has no chat template; the result keeps {lead.label}'s"
    return {**files, TEMPLATE_FILE: template.encode()}, [note]
