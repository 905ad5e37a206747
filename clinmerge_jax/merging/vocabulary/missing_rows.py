"""Which row a model takes for a token that it lacks, or for which the recipe names another row."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from clinmerge_jax.checkpoint.tokenizers.tokenizer import listed_tokens
from clinmerge_jax.errors import BadInput
from clinmerge_jax.merging.recipes.recipe import TokenSource
from clinmerge_jax.merging.vocabulary.alignment_sources import AlignmentSources
from clinmerge_jax.merging.vocabulary.row_table import RowTable

MISSING_RULES = ("auto", "owner", "mean")

Donors = tuple[tuple[str, int], ...]  # (model, row) pairs whose mean is taken; empty for zeros


@dataclasses.dataclass(frozen=True)
class _Choice:
    """The recipe's choice for one token.

    Attributes:
      donors: the rows it names; None where the rule decides.
      force: whether models that have a row of their own take these too.
    """

    donors: Donors | None
    force: bool


def fill_rows(
    sources: AlignmentSources, table: RowTable, token_sources: Mapping[str, TokenSource], missing: str
) -> dict[int, Donors]:
    """Decides what models take for rows that they lack.

    Args:
      sources: the models.
      table: the result's row table; own rows that a forced source replaces become -1 in it.
      token_sources: by token, the source of a row that does not follow the rule.
      missing: the rule; see `alignment.align`.

    Returns:
      By row of the result, the donors whose mean a model without that row takes.

    Raises:
      BadInput: a token has no row anywhere, or its source does not exist.
    """
    fill: dict[int, Donors] = {}
    chosen = _choices(sources, table, token_sources)
    lacking = np.any([own < 0 for own in table.rows.values()], axis=0)
    orphans = []
    for row in map(int, np.flatnonzero(lacking)):
        if row in table.tokens and row not in chosen:
            fill[row] = _by_rule(sources, table, row, missing)
            if not fill[row]:
                orphans.append(table.tokens[row])
    if orphans:
        raise BadInput(
            f"config.tokenizer: {listed_tokens(orphans)} of the result have no row in any model; give them one in"
            " tokenizer.tokens, or another tokenizer"
        )
    for row, choice in chosen.items():
        donors = choice.donors
        if donors is None:
            donors = _by_rule(sources, table, row, missing)
            if not donors:
                token = table.tokens[row]
                raise BadInput(f"tokenizer.tokens.{token}: no model has a row for it; give it a source")
        if choice.force:
            for own in table.rows.values():
                own[row] = -1
        if choice.force or lacking[row]:
            fill[row] = donors
    return fill


def _by_rule(sources: AlignmentSources, table: RowTable, row: int, missing: str) -> Donors:
    """The donors of a row by the rule, from the models that have it."""
    places = [(name, int(table.rows[name][row])) for name in sources.checkpoints]
    owners = [(name, place) for name, place in places if place >= 0]
    of_base = [(name, place) for name, place in owners if name == sources.base]
    if missing == "mean":
        return tuple(owners)
    if missing == "owner":
        return tuple((of_base or owners)[:1])
    return tuple(of_base or owners)


def _choices(
    sources: AlignmentSources, table: RowTable, token_sources: Mapping[str, TokenSource]
) -> dict[int, _Choice]:
    """The recipe's choices by row of the result."""
    chosen = {}
    for token, source in token_sources.items():
        place = f"tokenizer.tokens.{token}"
        if token not in table.ids:
            raise BadInput(f"{place}: is not a token of the result; leave it out, or give a tokenizer that has it")
        if source.source == "":
            donors = None
        elif source.source == "zero":
            donors = ()
        else:
            donors = (_named_row(sources, place, token, source),)
        chosen[table.ids[token]] = _Choice(donors, source.force)
    return chosen


def _named_row(sources: AlignmentSources, place: str, token: str, source: TokenSource) -> tuple[str, int]:
    model = source.model
    if model not in sources.checkpoints:
        raise BadInput(f"{place}: {model} is not one of the models; give one of {', '.join(sources.checkpoints)}")
    wanted = source.source[1] if isinstance(source.source, tuple) else token
    if isinstance(wanted, str):
        row = sources.must_have(model).row(wanted)
        if row < 0:
            raise BadInput(f"{place}: {model} has no row for token {wanted!r}; name another model or token")
        return model, row
    size = sources.sizes[model]
    if not 0 <= wanted < size:
        raise BadInput(f"{place}: {model} has no row {wanted}; give a token_id from 0 to {size - 1}")
    return model, wanted
