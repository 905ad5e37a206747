"""Converts rows of the data sets to items of a task."""

from collections.abc import Sequence

from clinmerge_jax.data.sets.data_set import Row
from clinmerge_jax.data.sets.files import Source
from clinmerge_jax.data.sets.prepared import read
from clinmerge_jax.data.sets.reading import LETTERS
from clinmerge_jax.tasks.task import Item


def items(dataset: str, split: str, source: Source, limit: int = 0) -> list[Item]:
    """The items of a split, in the order of the published file.

    Args:
      dataset: a name in the table of data sets.
      split: one of its splits.
      source: where the published files are.
      limit: maximum number of items, from the first on; 0 for all.

    Raises:
      BadInput: there is no such set or split, its files are missing or not the known ones, or a row is malformed.
    """
    return [_item(row) for row in read(dataset, split, source, limit)]


def option_lines(choices: Sequence[str]) -> str:
    """The options as prompts show them, one per line: "A. ..."."""
    return "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, choices))


def _item(row: Row) -> Item:
    options = {"choices": option_lines(row.choices)} if row.choices else {}
    return Item(
        id=row.id,
        name=row.name,
        fields={**row.fields, row.input_name: row.input, **options},
        source=row.input,
        target=row.output,
        choices=row.choices,
        cluster=row.cluster,
        label=row.label or None,
        shown=row.shown or None,
    )
