"""Aligns embedding rows of models that differ in tokenizer or in the number of rows.

This module only decides which rows go where; rows are read and merged elsewhere. V: rows of the result.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clinmerge_jax.checkpoint.adapters.adapter import Adapter
from clinmerge_jax.checkpoint.files import GENERATION_FILE
from clinmerge_jax.checkpoint.folder import Checkpoint
from clinmerge_jax.checkpoint.tokenizers.tokenizer import json_bytes, listed_tokens
from clinmerge_jax.errors import BadInput
from clinmerge_jax.merging.recipes.recipe import TokenSource
from clinmerge_jax.merging.vocabulary.alignment_sources import AlignmentSources
from clinmerge_jax.merging.vocabulary.missing_rows import MISSING_RULES, Donors, fill_rows
from clinmerge_jax.merging.vocabulary.row_table import (
    RowTable,
    rows_by_agreement,
    rows_by_tokenizer,
    rows_cut_to_common,
)
from clinmerge_jax.merging.vocabulary.special_rows import trained_elsewhere
from clinmerge_jax.merging.vocabulary.token_id_fields import token_id_updates


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """The rows of the result's embedding and head.

    Attributes:
      size: V, the number of rows.
      tokens: the tokens' texts in the order of the rows, None for ids without one; shorter than V where padding
        follows, empty where no tokenizer is known.
      rows: by model, int32 [V]: its own row for each row of the result, -1 where it takes `fill`.
      fill: by row of the result, the (model, row) pairs whose mean a model without that row takes; empty for zeros.
      files: the tokenizer files of the result, by name; empty where the leading model's stay as they are.
      notes: what was done, as lines of text for the report.
      config_updates: fields of config.json that change.
      same_ids: whether every token of the leading model has its id in all models and in the result.
    """

    size: int
    tokens: tuple[str | None, ...]
    rows: Mapping[str, np.ndarray]
    fill: Mapping[int, Donors]
    files: Mapping[str, bytes | pathlib.Path]
    notes: tuple[str, ...]
    config_updates: Mapping[str, Any]
    same_ids: bool

    def donors(self, model: str, row: int) -> Donors:
        """The (model, row) pairs whose mean is this model's input for a row of the result; empty for zeros."""
        own = int(self.rows[model][row])
        return ((model, own),) if own >= 0 else self.fill.get(row, ())


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
    adapters: Mapping[str, Adapter] | None = None,
) -> Vocabulary | None:
    """Decides which token gets which row of which model.

    A row that a model lacks is, depending on `missing`,
      "auto": mergekit's rule: the base's row if the base has the token, else the only owner's, else the owners' mean;
      "owner": the base's row, else that of the first source in order that has the token;
      "mean": the mean of the rows of all models that have it, including the base.
    With `special_rows`, the row of an added token that one model never trained and another did counts as lacking. A
    chat model's change from a base (Chat Vector, Huang et al. 2024, arXiv 2310.04799) is then not added to rows of
    noise. Rows of the result without a token are zeros, except where only special rows and rows of single tokens
    change: then every other row stays at its place.

    Args:
      sources: the models by name, in the recipe's order.
      base: the base model's name, "" for none.
      leading: the name of the model whose files the result takes, unless a tokenizer is asked for.
      tokenizer: "" if all models must agree on what an id means; "union": the base's ids (the leading model's
        without one), then the other models' further tokens in order; "base": the base's tokenizer (the leading model's
        without one); or the name of a model, or a folder with a tokenizer.
      token_sources: by token, the source of a row that does not follow the rule.
      missing: the rule, as above.
      pad_to_multiple_of: V is padded to a multiple of it; 0 for no padding.
      cut_to_common: whether to cut embeddings of different numbers of rows to the smallest, whatever their tokens are.
      special_rows: as above.
      adapters: LoRA adapters by model name; rows that an adapter trained count as trained.

    Returns:
      The alignment; None where every row stays where it is.

    Raises:
      BadInput: the models' tokens or rows do not fit together and no argument resolves that, a tokenizer does not
        load, two tokenizers have no exact union, or a token has no row anywhere.
    """
    token_sources = dict(token_sources or {})
    if missing not in MISSING_RULES:
        raise BadInput(f"config.missing_rows: {missing!r} is unknown; give one of {', '.join(MISSING_RULES)}")
    if type(pad_to_multiple_of) is not int or pad_to_multiple_of < 0:
        raise BadInput(f"pad_to_multiple_of: is {pad_to_multiple_of!r}; give a whole number, 0 for no padding")
    if cut_to_common and tokenizer:
        raise BadInput(
            f"config.tokenizer: is {tokenizer!r}, which aligns by tokens, but cut_to_common is set; leave one out"
        )
    models = AlignmentSources(dict(sources), base, leading, dict(adapters or {}))
    models.check_roles()
    if tokenizer:
        table = rows_by_tokenizer(models, tokenizer, pad_to_multiple_of)
    elif cut_to_common and not models.same_size:
        table = rows_cut_to_common(models, pad_to_multiple_of)
    else:
        table = rows_by_agreement(models, pad_to_multiple_of, by_name=bool(token_sources))
    untrained: dict[str, list[int]] = {}
    if special_rows:
        untrained, unseen = trained_elsewhere(models, table)
        table.notes += unseen
    at_their_places = table.by_id and not table.files and set(models.sizes.values()) == {table.size}
    if at_their_places and not untrained and not token_sources:
        return None
    for name, rows in untrained.items():
        table.rows[name][rows] = -1
    fill = fill_rows(models, table, token_sources, missing)
    return _vocabulary(models, table, fill, untrained)


def _vocabulary(
    sources: AlignmentSources,
    table: RowTable,
    fill: Mapping[int, Donors],
    untrained: Mapping[str, Sequence[int]],
) -> Vocabulary:
    """Builds the `Vocabulary` of a filled table."""
    used = sources.sizes[sources.leading]  # rows of the leading model that have a token
    lead = sources.vocabulary(sources.leading, convert=False)
    if lead is not None:
        used = min(used, max(lead.tokens) + 1)
    moved = token_id_updates(sources, table)
    notes = table.notes + _notes(sources, table, fill, untrained) + moved.notes
    files = dict(table.files)
    if moved.generation_config is not None:
        files[GENERATION_FILE] = json_bytes(moved.generation_config)
    for own in table.rows.values():
        own.flags.writeable = False
    return Vocabulary(
        size=table.size,
        tokens=tuple(table.tokens.get(index) for index in range(max(table.tokens, default=-1) + 1)),
        rows=table.rows,
        fill=fill,
        files=files,
        notes=tuple(notes),
        config_updates={"vocab_size": table.size, **moved.config},
        same_ids=table.by_id and used <= table.size,
    )


def _notes(
    sources: AlignmentSources,
    table: RowTable,
    fill: Mapping[int, Donors],
    untrained: Mapping[str, Sequence[int]],
) -> list[str]:
    """Lines on the rows that each model takes from elsewhere, and on how many of its rows move."""
    notes = []
    for name, own in table.rows.items():
        label = sources.checkpoints[name].label
        never = set(untrained.get(name, ()))
        kinds: dict[tuple[str, bool], list[str]] = {}
        for row, donors in fill.items():
            if own[row] < 0:
                whom = " and ".join(dict.fromkeys(sources.checkpoints[donor].label for donor, _ in donors))
                origin = "zeros" if not donors else f"{'the mean of ' if len(donors) > 1 else ''}{whom}"
                kinds.setdefault((origin, row in never), []).append(table.tokens[row])
        for (origin, special), tokens in kinds.items():
            which = "special tokens that it never trained" if special else "tokens that it takes from elsewhere"
            verb = "are" if origin == "zeros" else "come from"
            notes.append(f"{label}: rows of {which} {verb} {origin}: {listed_tokens(tokens)}")
        moved = int(((own >= 0) & (own != np.arange(table.size))).sum())
        if moved:
            notes.append(f"{label}: {int((own >= 0).sum())} rows are its own, {moved} of them at a new id")
    return notes
