"""Whose embedding row goes where when models differ in tokenizer or in embedding rows.

Only which rows go where is settled here. Same words at different ids are aligned by the token's text, never by row
number. V: rows of the result. D: hidden size. M: models.
"""

import collections
import dataclasses
import functools
import itertools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from absl import logging

from clinmerge_jax.checkpoint.embedding import vocabulary_rows, vocabulary_tensors
from clinmerge_jax.checkpoint.folder import GENERATION_FILE, Checkpoint, resolve
from clinmerge_jax.checkpoint.safetensors import TensorEntry, parse_json, read_into
from clinmerge_jax.checkpoint.tokenizer import (
    ADDED_FILE,
    OLDER_FILES,
    SETTINGS_FILE,
    TOKEN_FLAGS,
    TOKENIZER_FILE,
    TokenizerVocabulary,
    has_tokenizer,
    json_bytes,
    read_again,
    read_tokenizer,
    read_vocabulary,
    settings_of,
    tokenizer_files,
)
from clinmerge_jax.errors import BadInput
from clinmerge_jax.merging.chat_templates import TEMPLATE_FILE, template_of
from clinmerge_jax.merging.recipe import TokenSource

MISSING_RULES = ("auto", "owner", "mean")

# A special token's row counts as never trained below this share of the median norm of ordinary rows: what starts at
# zero, or is only ever shrunk by weight decay, ends far below what text has trained.
UNTRAINED_NORM = 0.01
# ... or where so many special rows have the same bits: training moves rows apart, a common start leaves them equal.
UNTRAINED_EQUALS = 3

_SAMPLE = 512  # ordinary rows whose median norm is taken
_SHOWN = 10
_MENDS = "give a tokenizer (union, base or a model)"


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """The rows of the result's embedding and head.

    Attributes:
      size: V, rows.
      tokens: their texts in order, None for ids without one; shorter than V where padding follows, empty where no
        tokenizer is known.
      rows: by model, int32 [V]: its own row for each of the result, -1 where it takes `fill`.
      fill: by row of the result, the (model, row)s whose mean a model without that row takes; none stand for zeros.
      files: the tokenizer files of the result, by name; empty where the leading model's stay as they are.
      notes: what was done, in lines for people.
      config_updates: fields of config.json that change.
      generation_config_updates: likewise of generation_config.json, whose new content is among `files`.
      summary: what was done, JSON-serialisable.
    """

    size: int
    tokens: tuple[str | None, ...]
    rows: Mapping[str, np.ndarray]
    fill: Mapping[int, tuple[tuple[str, int], ...]]
    files: Mapping[str, bytes | pathlib.Path]
    notes: tuple[str, ...]
    config_updates: Mapping[str, Any]
    generation_config_updates: Mapping[str, Any]
    summary: Mapping[str, Any]

    def donors(self, model: str, row: int) -> tuple[tuple[str, int], ...]:
        """The (model, row)s whose mean is this model's input for a row of the result; none stand for zeros."""
        own = int(self.rows[model][row])
        return ((model, own),) if own >= 0 else self.fill.get(row, ())


def untrained_special_rows(checkpoint: Checkpoint, vocabulary: TokenizerVocabulary) -> frozenset[str]:
    """The added tokens whose rows this model never trained.

    These are tokens whose row of the embedding, or of the head where it is a tensor of its own, is zero or has a norm
    under `UNTRAINED_NORM` of the median of ordinary tokens' rows, or has the same bits as the rows of at least
    `UNTRAINED_EQUALS` - 1 other added tokens. One of the two tensors is enough: a token must have been read and
    written to be of use in a chat.

    Args:
      checkpoint: a model; only these rows and a sample of ordinary ones are read.
      vocabulary: of its tokenizer.

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
        values = _read_rows(entry, list(places.values()))
        norms = _norms(values)
        floor = UNTRAINED_NORM * float(np.median(_norms(_read_rows(entry, sample)))) if sample else 0.0
        bits = [row.tobytes() for row in values]
        equal = collections.Counter(bits)
        untrained |= {
            token
            for token, norm, row in zip(places, norms, bits)
            if norm == 0 or norm < floor or equal[row] >= UNTRAINED_EQUALS
        }
    return frozenset(untrained)


def _read_rows(entry: TensorEntry, rows: Sequence[int]) -> np.ndarray:
    """These rows of a tensor, [rows, D] in its own dtype."""
    values = np.empty((len(rows), entry.shape[-1]), entry.dtype)
    nbytes = entry.shape[-1] * entry.dtype.itemsize
    descriptor = os.open(entry.file, os.O_RDONLY)
    try:
        for place, row in enumerate(rows):
            read_into(descriptor, entry.offset + row * nbytes, memoryview(values[place].view(np.uint8)), entry.file)
    finally:
        os.close(descriptor)
    return values


def _norms(values: np.ndarray) -> np.ndarray:
    return np.linalg.norm(values.astype(np.float64), axis=-1)


@dataclasses.dataclass
class _Layout:
    """The result's rows before rules fill gaps.

    Attributes:
      size: V.
      tokens: text by id.
      rows: by model, int32 [V], -1 for rows that the model lacks.
      tokenizer: the result's; None where the leading model's files stay.
      files: as in `Vocabulary`.
      notes: likewise.
      by_id: whether a token's row is its id in every model.
    """

    size: int
    tokens: dict[int, str]
    rows: dict[str, np.ndarray]
    tokenizer: TokenizerVocabulary | None
    files: dict[str, bytes | pathlib.Path]
    notes: list[str]
    by_id: bool = False

    @functools.cached_property
    def ids(self) -> dict[str, int]:
        """Id by token."""
        return {token: index for index, token in self.tokens.items()}


def align(
    sources: Mapping[str, Checkpoint],
    *,
    base: str,
    leading: str,
    tokenizer: str = "",
    token_sources: Mapping[str, TokenSource] | None = None,
    missing: str = "auto",
    pad_to_multiple_of: int = 0,
    cut_to_common: bool = False,
    special_rows: bool = True,
    field: str = "config.tokenizer",
) -> Vocabulary | None:
    """Settles which token gets which row of which model.

    A row that a model lacks is, by `missing`,
      "auto": mergekit's rule: the base's row if the base has the token, else the only owner's, else the owners' mean;
      "owner": the base's row, else that of the first source in order that has the token;
      "mean": the mean of the rows of all that have it, the base too.
    With `special_rows`, the row of an added token that one model never trained and another did counts as lacking: the
    change of a chat model, counted from a base (Chat Vector, Huang et al. 2024, arXiv 2310.04799), then does not meet
    rows of noise. Rows of the result that no token has are zeros, unless nothing but special rows and rows of single
    tokens changes: then every other row stays at its place.

    Args:
      sources: the models by name, in the recipe's order.
      base: the base model's name, "" for none.
      leading: the name of the model whose files the result takes otherwise.
      tokenizer: "" where all models must agree in what an id means; "union": the base's ids (the leading model's
        without one), then the other models' further tokens in order; "base": the base's tokenizer (the leading model's
        without one); or the name of a model, or a folder with a tokenizer.
      token_sources: rows of single tokens that do not follow the rule.
      missing: the rule, as above.
      pad_to_multiple_of: of V; 0 for none.
      cut_to_common: cut embeddings of different numbers of rows to the smallest, whatever their tokens are.
      special_rows: as above.
      field: where `tokenizer` comes from, for messages.

    Returns:
      The alignment; None where every row stays where it is.

    Raises:
      BadInput: the models' tokens or rows do not fit together and nothing says how to mend that, a tokenizer does not
        load, two tokenizers have no exact union, or a token has no row anywhere.
    """
    token_sources = dict(token_sources or {})
    if missing not in MISSING_RULES:
        raise BadInput(f"config.missing_rows: {missing!r} is unknown; give one of {', '.join(MISSING_RULES)}")
    if type(pad_to_multiple_of) is not int or pad_to_multiple_of < 0:
        raise BadInput(f"pad_to_multiple_of: is {pad_to_multiple_of!r}; give a whole number, 0 for no padding")
    sizes = {name: vocabulary_rows(checkpoint) for name, checkpoint in sources.items()}
    for role, name in (("base", base), ("leading", leading)):
        if name not in sources and (name or role == "leading"):
            raise BadInput(f"{role}: {name!r} is not one of the models; give one of {', '.join(sources)}")
    aligner = _Aligner(dict(sources), sizes, base, leading, field, pad_to_multiple_of)
    if cut_to_common and tokenizer:
        raise BadInput(f"{field}: is {tokenizer!r}, which aligns by tokens, and cut_to_common is set; leave one out")
    if tokenizer:
        layout = aligner.by_tokenizer(tokenizer, token_sources)
    elif cut_to_common and len(set(sizes.values())) > 1:
        layout = aligner.cut()
    else:
        layout = aligner.agreed(token_sources)
    untrained = aligner.untrained(layout) if special_rows else {}
    trivial = layout.by_id and not layout.files and set(sizes.values()) == {layout.size}
    if trivial and not untrained and not token_sources:
        return None
    return aligner.finish(layout, untrained, token_sources, missing)


@dataclasses.dataclass
class _Aligner:
    """The state of one `align`.

    Attributes:
      sources: the models by name.
      sizes: rows of their embeddings.
      base: the base's name, "" for none.
      leading: the leading model's name.
      field: where `tokenizer` comes from.
      multiple: of which the result's rows are to be; 0 for any.
      read: the tokenizers that were needed so far.
    """

    sources: dict[str, Checkpoint]
    sizes: dict[str, int]
    base: str
    leading: str
    field: str
    multiple: int
    read: dict[str, TokenizerVocabulary] = dataclasses.field(default_factory=dict)

    def vocabulary(self, name: str, convert: bool = True) -> TokenizerVocabulary | None:
        """A source's tokens; None where the folder has no tokenizer, or one that would have to be converted."""
        if name not in self.read:
            checkpoint = self.sources[name]
            if not has_tokenizer(checkpoint.path, convert=convert):
                return None
            again = (read_again(one, checkpoint) for one in self.read.values())
            known = next((one for one in again if one is not None), None)
            self.read[name] = known or read_vocabulary(checkpoint, checkpoint.label)
        return self.read[name]

    def padded(self, size: int) -> int:
        """The next number of rows that is allowed."""
        return -(-size // self.multiple) * self.multiple if self.multiple else size

    def identity(self, size: int) -> dict[str, np.ndarray]:
        """Every row from its own place, as far as a model has it."""
        places = np.arange(size, dtype=np.int32)
        return {name: np.where(places < rows, places, -1).astype(np.int32) for name, rows in self.sizes.items()}

    # No tokenizer is asked for.

    def agreed(self, token_sources: Mapping[str, TokenSource]) -> _Layout:
        """All models must agree already, but for padding rows and for the names of special tokens."""
        same_size = len(set(self.sizes.values())) == 1
        known = {name: self.vocabulary(name, convert=not same_size or bool(token_sources)) for name in self.sources}
        without = [self.sources[name].label for name, one in known.items() if one is None]
        if without and token_sources:
            raise BadInput(f"{without[0]}: has no tokenizer, which rows of single tokens need; add its tokenizer files")
        described = ", ".join(f"{self.sources[name].label} {rows}" for name, rows in self.sizes.items())
        if without and not same_size:
            raise BadInput(
                f"{without[0]}: has no tokenizer to align by, and embeddings have different rows ({described}); add its"
                " tokenizer files, or set cut_to_common"
            )
        present = [one for one in known.values() if one is not None]
        lead = known[self.leading]
        for one, two in itertools.combinations(present, 2):
            self._refuse_disagreement(one, two, described, same_size)
        if same_size:
            size = self.sizes[self.leading]
            notes = []
            if self.padded(size) != size:
                notes.append(f"{size} rows are padded with zeros to {self.padded(size)}")
            tokens = lead.tokens if lead else {}
            tokens = {index: token for index, token in tokens.items() if index < size}
            return _Layout(self.padded(size), tokens, self.identity(self.padded(size)), lead, {}, notes, by_id=True)
        end = max(lead.tokens) + 1
        size = self.padded(max(self.sizes[self.leading], end))
        rows = self.identity(size)
        used = np.isin(np.arange(size), list(lead.tokens))
        for own in rows.values():
            own[~used] = -1
        notes = [
            f"the same {len(lead.ids)} tokens in all models, and rows beyond them in different numbers ({described}):"
            f" the result has {size} rows, those beyond the tokens are zeros"
        ]
        return _Layout(size, lead.tokens, rows, lead, {}, notes, by_id=True)

    def _refuse_disagreement(
        self, one: TokenizerVocabulary, two: TokenizerVocabulary, described: str, same_size: bool
    ) -> None:
        if one.ids == two.ids:
            return
        moved = next((token for token, index in one.ids.items() if two.ids.get(token, index) != index), None)
        if moved is not None:
            raise BadInput(
                f"{two.label}: token {moved!r} has id {two.ids[moved]} there and {one.ids[moved]} in {one.label};"
                f" {_MENDS} to align them"
            )
        for index, token in one.tokens.items():
            theirs = two.tokens.get(index, token)
            if theirs != token and not (token in one.added and theirs in two.added):
                raise BadInput(
                    f"{two.label}: id {index} is {theirs!r} there and {token!r} in {one.label}; {_MENDS} to align them"
                )
        if not same_size:
            ids = sorted(set(one.tokens) ^ set(two.tokens))
            if ids:
                owner = one if ids[0] in one.tokens else two
                raise BadInput(
                    f"{two.label}: embeddings have different rows ({described}), and {len(ids)} tokens such as"
                    f" {owner.tokens[ids[0]]!r} are {owner.label}'s alone; {_MENDS} to align them, or set cut_to_common"
                )

    def cut(self) -> _Layout:
        """The common corner, whatever lies beyond it."""
        size = min(self.sizes.values())
        present = [one for one in map(self.vocabulary, self.sources) if one is not None]
        described = ", ".join(f"{self.sources[name].label} {rows}" for name, rows in self.sizes.items())
        notes = [f"embeddings of {described} rows are cut to the first {size}"]
        if len(present) < len(self.sources):
            notes.append("not every model has a tokenizer, so ids are taken to mean the same tokens")
        for one in present:
            lost = [token for index, token in one.tokens.items() if index >= size]
            if lost:
                notes.append(f"{one.label} loses {_listed(lost, 'token')}")
            for index, token in one.tokens.items():
                theirs = present[0].tokens.get(index, token)
                if index < size and theirs != token and not (token in one.added and theirs in present[0].added):
                    raise BadInput(
                        f"{one.label}: id {index} is {token!r} there and {theirs!r} in {present[0].label}, so cutting"
                        f" would mix them; {_MENDS} instead of cut_to_common"
                    )
        for note in notes:
            logging.warning("vocabulary: %s", note)
        lead = self.vocabulary(self.leading)
        tokens = {index: token for index, token in lead.tokens.items() if index < size} if lead else {}
        rows = {name: np.full(self.padded(size), -1, np.int32) for name in self.sources}
        for own in rows.values():
            own[:size] = np.arange(size)
        return _Layout(self.padded(size), tokens, rows, lead, {}, notes, by_id=True)

    # A tokenizer is asked for.

    def by_tokenizer(self, tokenizer: str, token_sources: Mapping[str, TokenSource]) -> _Layout:
        """Rows by the tokens' texts, for the ids of the tokenizer that is asked for."""
        known = {name: self._must_have(name) for name in self.sources}
        first = self.base or self.leading
        if tokenizer == "union":
            return self._union(known, first, token_sources)
        if tokenizer == "base":
            result, title = known[first], f"{known[first].label}'s"
        elif tokenizer in known:
            result, title = known[tokenizer], f"{known[tokenizer].label}'s"
        else:
            path = resolve(tokenizer, self.field)
            result, title = read_tokenizer(path, self.field), f"{path.name}'s"
        if all(one.ids == result.ids for one in known.values()) and len(set(self.sizes.values())) == 1:
            layout = self.agreed(token_sources)
            lead = known[self.leading]
            same_files = result.content == lead.content != b"" and settings_of(result.path) == settings_of(lead.path)
            if not same_files and result.path != lead.path:
                layout.files = self._with_template(tokenizer_files(result.path), layout.notes)
                layout.notes.append(f"all models have the same tokens; the tokenizer is {title}")
            layout.tokenizer = result
            return layout
        notes = [f"the tokenizer is {title}, of {len(result.ids)} tokens"]
        tokens = result.tokens
        files = self._with_template(tokenizer_files(result.path), notes)
        return self._by_text(known, tokens, result, files, notes)

    def _must_have(self, name: str) -> TokenizerVocabulary:
        one = self.vocabulary(name)
        if one is None:
            raise BadInput(
                f"{self.sources[name].label}: {self.sources[name].path} has no {TOKENIZER_FILE}; add its tokenizer"
            )
        return one

    def _by_text(
        self,
        known: Mapping[str, TokenizerVocabulary],
        tokens: dict[int, str],
        result: TokenizerVocabulary,
        files: dict[str, bytes | pathlib.Path],
        notes: list[str],
    ) -> _Layout:
        end = max(tokens) + 1
        size = self.padded(end)
        rows = {name: np.full(size, -1, np.int32) for name in known}
        for name, one in known.items():
            for index, token in tokens.items():
                rows[name][index] = one.row(token)
        for one in known.values():
            dropped = [token for token in one.tokens.values() if token not in result.ids]
            if dropped:
                notes.append(f"{_listed(dropped, 'token')} of {one.label} are not in the result")
        if size > len(tokens):
            notes.append(f"{size - len(tokens)} of {size} rows belong to no token and are zeros")
        return _Layout(size, tokens, rows, result, files, notes)

    def _union(
        self, known: dict[str, TokenizerVocabulary], first: str, token_sources: Mapping[str, TokenSource]
    ) -> _Layout:
        start = known[first]
        others = [one for name, one in known.items() if name != first]
        notes = [""]
        for one in others:
            if one.content != start.content or not start.content:
                self._refuse_other_model(start, one, notes)
        if all(one.ids == start.ids for one in others) and len(set(self.sizes.values())) == 1:
            return self.agreed(token_sources)
        backend = tokenizers.Tokenizer.from_str(start.backend.to_str())
        taken = dict(start.added)
        for one in others:
            clashing = [token for token, added in one.added.items() if _flags(taken.get(token, added)) != _flags(added)]
            if clashing:
                notes.append(f"{_listed(clashing, 'token')} of {one.label} are found in text as an earlier model does")
            backend.add_tokens([added for token, added in one.added.items() if token not in taken])
            taken = {**one.added, **taken}
        ids = backend.get_vocab(with_added_tokens=True)
        if len(set(ids.values())) < len(ids):
            raise BadInput(
                f"{self.field}: {start.label}'s tokenizer has gaps among its ids, in which added tokens would collide;"
                " give base, or the model whose tokenizer the result is to have"
            )
        result = dataclasses.replace(start, ids=ids, backend=backend, rows=0, content=b"")
        new = [token for token in result.tokens.values() if token not in start.ids]
        notes[0] = f"the tokenizer is {start.label}'s, of {len(start.ids)} tokens, with {_listed(new, 'token')} added"
        files = tokenizer_files(start.path)
        if backend.to_str() != start.backend.to_str():
            files |= _extended_files(start, backend, {token: ids[token] for token in new}, files)
        return self._by_text(known, result.tokens, result, self._with_template(files, notes), notes)

    def _refuse_other_model(self, start: TokenizerVocabulary, one: TokenizerVocabulary, notes: list[str]) -> None:
        """Refuses two tokenizers that split text in different ways: no tokenizer does what both do."""
        definition, other = start.definition, one.definition
        reason = _difference(definition, set(start.added), other, set(one.added))
        if reason:
            raise BadInput(
                f"{self.field}: no union of {start.label} and {one.label} encodes text as each of them does ({reason});"
                " give base, or the model whose tokenizer the result is to have"
            )
        if definition.get("post_processor") != other.get("post_processor"):
            notes.append(f"tokens put around a text (such as the BOS) are {start.label}'s, not {one.label}'s")

    def _with_template(
        self, files: dict[str, bytes | pathlib.Path], notes: list[str]
    ) -> dict[str, bytes | pathlib.Path]:
        """Adds the leading model's chat template where the tokenizer has none."""
        leading = self.sources[self.leading]
        settings = files.get(SETTINGS_FILE)
        own = TEMPLATE_FILE in files
        if settings is not None and not own:
            content = parse_json(settings if isinstance(settings, bytes) else settings.read_bytes(), SETTINGS_FILE)
            own = isinstance(content, dict) and bool(content.get("chat_template"))
        template = "" if own else template_of(leading)
        if template:
            files[TEMPLATE_FILE] = template.encode()
            notes.append(f"the tokenizer has no chat template; the result keeps {leading.label}'s")
        return files

    # Gaps.

    def untrained(self, layout: _Layout) -> dict[str, list[int]]:
        """By model, the rows of special tokens that it never trained and another model did."""
        found: dict[str, set[int]] = {}
        for name, checkpoint in self.sources.items():
            one = self.vocabulary(name, convert=bool(layout.files))
            if one is None or not one.added or not layout.tokens:
                continue
            if not all(entry.file.is_file() for entry in vocabulary_tensors(checkpoint)):
                layout.notes.append(f"{checkpoint.label} is not made yet, so its special rows are not looked at")
                continue
            tokens = untrained_special_rows(checkpoint, one)
            if layout.by_id:
                found[name] = {one.ids[token] for token in tokens if one.ids[token] < layout.size}
            else:
                found[name] = {layout.ids[token] for token in tokens if token in layout.ids}
        trained_elsewhere = {
            name: [
                row
                for row in sorted(rows)
                if row in layout.tokens
                and any(layout.rows[other][row] >= 0 and row not in found.get(other, ()) for other in self.sources)
            ]
            for name, rows in found.items()
        }
        return {name: rows for name, rows in trained_elsewhere.items() if rows}

    def finish(
        self,
        layout: _Layout,
        untrained: Mapping[str, Sequence[int]],
        token_sources: Mapping[str, TokenSource],
        missing: str,
    ) -> Vocabulary:
        """Fills what models lack, and describes it."""
        for name, rows in untrained.items():
            layout.rows[name][list(rows)] = -1
        fill: dict[int, tuple[tuple[str, int], ...]] = {}
        chosen = self._chosen(layout, token_sources)
        lacking = np.any([own < 0 for own in layout.rows.values()], axis=0)
        orphans = []
        for row in map(int, np.flatnonzero(lacking)):
            if row in layout.tokens and row not in chosen:
                fill[row] = self._rule(missing, layout, row)
                if not fill[row]:
                    orphans.append(layout.tokens[row])
        if orphans:
            raise BadInput(
                f"{self.field}: {_listed(orphans, 'token')} of the result have no row in any model; give them one in"
                " tokenizer.tokens, or another tokenizer"
            )
        for row, (donors, force) in chosen.items():
            if donors is None:
                donors = self._rule(missing, layout, row)
                if not donors:
                    token = layout.tokens[row]
                    raise BadInput(f"tokenizer.tokens.{token}: no model has a row for it; give it a source")
            if force:
                for own in layout.rows.values():
                    own[row] = -1
            if force or lacking[row]:
                fill[row] = donors
        notes = [f"vocabulary: {note}" for note in layout.notes]
        notes += self._notes(layout, fill, untrained)
        updates, generation = self._token_id_updates(layout, notes)
        files = dict(layout.files)
        if generation:
            path = self.sources[self.leading].path / GENERATION_FILE
            content = {**parse_json(path.read_bytes(), path), **generation}
            files[GENERATION_FILE] = json_bytes(content)
        end = max(layout.tokens, default=-1) + 1
        rows = {name: layout.rows[name] for name in self.sources}
        for own in rows.values():
            own.flags.writeable = False
        return Vocabulary(
            size=layout.size,
            tokens=tuple(layout.tokens.get(index) for index in range(end)),
            rows=rows,
            fill=fill,
            files=files,
            notes=tuple(notes),
            config_updates={"vocab_size": layout.size, **updates},
            generation_config_updates=generation,
            summary={
                "rows": layout.size,
                "tokens": len(layout.tokens),
                "missing": missing,
                "own_rows": {name: int((own >= 0).sum()) for name, own in rows.items()},
                "untrained": {name: [layout.tokens[row] for row in places] for name, places in untrained.items()},
                "token_sources": sorted(token_sources),
            },
        )

    def _rule(self, missing: str, layout: _Layout, row: int) -> tuple[tuple[str, int], ...]:
        """The donors of a row among the models that have it."""
        places = [(name, int(layout.rows[name][row])) for name in self.sources]
        owners = [(name, place) for name, place in places if place >= 0]
        of_base = [(name, place) for name, place in owners if name == self.base]
        if missing == "mean":
            return tuple(owners)
        if missing == "owner":
            return tuple((of_base or owners)[:1])
        return tuple(of_base or owners)

    def _chosen(
        self, layout: _Layout, token_sources: Mapping[str, TokenSource]
    ) -> dict[int, tuple[tuple[tuple[str, int], ...] | None, bool]]:
        """By row, the donors that the recipe names (None for the rule) and whether every model takes them."""
        chosen = {}
        for token, source in token_sources.items():
            place = f"tokenizer.tokens.{token}"
            if token not in layout.ids:
                raise BadInput(f"{place}: is not a token of the result; leave it out, or give a tokenizer that has it")
            if source.source == "":
                donors = None
            elif source.source == "zero":
                donors = ()
            else:
                donors = (self._named_row(place, token, source),)
            chosen[layout.ids[token]] = (donors, source.force)
        return chosen

    def _named_row(self, place: str, token: str, source: TokenSource) -> tuple[str, int]:
        model = source.model
        if model not in self.sources:
            raise BadInput(f"{place}: {model} is not one of the models; give one of {', '.join(self.sources)}")
        wanted = source.source[1] if isinstance(source.source, tuple) else token
        if isinstance(wanted, str):
            row = self._must_have(model).row(wanted)
            if row < 0:
                raise BadInput(f"{place}: {model} has no row for token {wanted!r}; name another model or token")
            return model, row
        if not 0 <= wanted < self.sizes[model]:
            raise BadInput(f"{place}: {model} has no row {wanted}; give a token_id from 0 to {self.sizes[model] - 1}")
        return model, wanted

    def _notes(
        self,
        layout: _Layout,
        fill: Mapping[int, tuple[tuple[str, int], ...]],
        untrained: Mapping[str, Sequence[int]],
    ) -> list[str]:
        notes = []
        for name, own in layout.rows.items():
            label = self.sources[name].label
            never = set(untrained.get(name, ()))
            kinds: dict[tuple[str, bool], list[str]] = {}
            for row, donors in fill.items():
                if own[row] < 0:
                    whom = " and ".join(dict.fromkeys(self.sources[donor].label for donor, _ in donors))
                    origin = "zeros" if not donors else f"{'the mean of ' if len(donors) > 1 else ''}{whom}"
                    kinds.setdefault((origin, row in never), []).append(layout.tokens[row])
            for (origin, special), tokens in kinds.items():
                which = "special tokens that it never trained" if special else "tokens that it takes from elsewhere"
                verb = "are" if origin == "zeros" else "come from"
                notes.append(f"{label}: rows of {which} {verb} {origin}: {_listed(tokens, 'token')}")
            moved = int(((own >= 0) & (own != np.arange(layout.size))).sum())
            if moved:
                notes.append(f"{label}: {int((own >= 0).sum())} rows are its own, {moved} of them at a new id")
        return notes

    def _token_id_updates(self, layout: _Layout, notes: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The leading model's token ids where the same tokens are at other ids now: config.json's, the generation's."""
        leading = self.sources[self.leading]
        path = leading.path / GENERATION_FILE
        generation = parse_json(path.read_bytes(), path) if path.is_file() else {}
        if not isinstance(generation, dict):
            raise BadInput(f"{path}: is no JSON object; fetch it again")
        updates = []
        for file, content in (("config.json", leading.config), (GENERATION_FILE, generation)):
            moved = {}
            for key, value in content.items():
                if not key.endswith("_token_id"):
                    continue
                new = self._new_ids(value, key, layout)
                if new != value:
                    moved[key] = new
                    notes.append(f"{file}: {key} {value} becomes {'none' if new is None else new}")
            updates.append(moved)
        return updates[0], updates[1]

    def _new_ids(self, value: Any, key: str, layout: _Layout) -> Any:
        """What becomes of the id, or ids, that a field of the leading model has."""
        given = value if isinstance(value, list) else [value]
        if not all(type(index) is int and index >= 0 for index in given):
            return value  # null, or -1 for none
        if layout.by_id:
            kept = [index for index in given if not layout.size <= index < self.sizes[self.leading]]
        else:
            lead = self._must_have(self.leading)
            kept = [layout.ids[lead.tokens[index]] for index in given if lead.tokens.get(index) in layout.ids]
            named = settings_of(layout.tokenizer.path).get(key.removesuffix("_id"))
            named = named.get("content") if isinstance(named, dict) else named
            if not kept and named in layout.ids:
                kept = [layout.ids[named]]
        if isinstance(value, list):
            return kept or None
        return kept[0] if kept else None


def _difference(one: Mapping[str, Any], one_added: set[str], two: Mapping[str, Any], two_added: set[str]) -> str:
    """Why two tokenizer definitions split text differently, added tokens aside; "" where they do not."""
    one_model, two_model = one["model"], two["model"]
    kinds = [model.get("type") for model in (one_model, two_model)]
    if kinds[0] != kinds[1]:
        return f"one is {kinds[0]}, the other {kinds[1]}"
    words = [_pieces(model) for model in (one_model, two_model)]
    alone = [word for word in words[0] if word not in words[1] and word not in one_added]
    alone += [word for word in words[1] if word not in words[0] and word not in two_added]
    if alone:
        return f"{_listed(alone, 'word')} that are no added tokens, are in one alone"
    both = [word for word in (*one_added, *two_added) if (word in one_added) != (word in two_added)]
    both = sorted(word for word in both if word in words[0] and word in words[1])
    if both:
        return f"{_listed(both, 'word')} of both are added tokens of one alone"
    scored = next((word for word in words[0] if words[1].get(word, words[0][word]) != words[0][word]), None)
    if scored is not None:
        return f"the score of {scored!r} differs"
    merges = [model.get("merges", []) for model in (one_model, two_model)]
    if merges[0] != merges[1]:
        place = next((i for i, pair in enumerate(zip(*merges)) if pair[0] != pair[1]), min(map(len, merges)))
        return f"their BPE merges differ from number {place + 1} on"
    for key in sorted({*one_model, *two_model} - {"vocab", "merges", "unk_id"}):
        if one_model.get(key) != two_model.get(key):
            return f"{key} is {one_model.get(key)!r} in one and {two_model.get(key)!r} in the other"
    for part in ("normalizer", "pre_tokenizer"):
        if one.get(part) != two.get(part):
            return f"their {part} differs"
    return ""


def _pieces(model: Mapping[str, Any]) -> dict[str, float]:
    """The model's own words, with scores where it has such."""
    vocabulary = model["vocab"]
    return dict.fromkeys(vocabulary, 0.0) if isinstance(vocabulary, dict) else dict(map(tuple, vocabulary))


def _flags(token: tokenizers.AddedToken) -> tuple[bool, ...]:
    return tuple(getattr(token, flag) for flag in TOKEN_FLAGS)


def _described(token: tokenizers.AddedToken) -> dict[str, Any]:
    """An added token as tokenizer_config.json has it."""
    return {"content": token.content, **{flag: getattr(token, flag) for flag in (*TOKEN_FLAGS, "special")}}


def _extended_files(
    start: TokenizerVocabulary,
    backend: tokenizers.Tokenizer,
    new: Mapping[str, int],
    files: Mapping[str, bytes | pathlib.Path],
) -> dict[str, bytes]:
    """Those of a tokenizer's files that change when tokens are added to it."""
    changed = {TOKENIZER_FILE: backend.to_str(pretty=True).encode()}
    settings = settings_of(start.path)
    if isinstance(settings.get("added_tokens_decoder"), dict):
        by_id = backend.get_added_tokens_decoder()
        settings["added_tokens_decoder"] = {str(index): _described(by_id[index]) for index in sorted(by_id)}
        changed[SETTINGS_FILE] = json_bytes(settings)
    if any(name in files for name in (ADDED_FILE, *OLDER_FILES)):  # who reads these finds the rest there
        file = start.path / ADDED_FILE
        before = parse_json(file.read_bytes(), file) if file.is_file() else {}
        changed[ADDED_FILE] = json_bytes({**before, **new})
    return changed


def _listed(tokens: Sequence[str], kind: str) -> str:
    """So many tokens, the first of them by name."""
    shown = ", ".join(repr(token) for token in tokens[:_SHOWN])
    more = f" and {len(tokens) - _SHOWN} more" if len(tokens) > _SHOWN else ""
    return f"{len(tokens)} {kind}{'s' * (len(tokens) != 1)} ({shown}{more})"
