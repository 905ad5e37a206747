"""`config.fields`: which columns of a user's rows make the fields that this package reads, by templates."""

import dataclasses
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from clinmerge_jax.data.row_files import as_text, shown_columns
from clinmerge_jax.errors import BadInput

_PART = re.compile(r"\s*(?P<field>\w+)\s*=(?P<template>.*)", re.DOTALL)
_NEXT = re.compile(r";\s*(?=\w+\s*=)")


@dataclasses.dataclass(frozen=True)
class FieldMap:
    """Fields, each with the template that makes it.

    Attributes:
      templates: with names of columns in braces. One that is nothing but a column takes its value as it is.
    """

    templates: Mapping[str, str]

    def apply(self, row: Mapping[str, Any], name: str, kept: Sequence[str] = ()) -> dict[str, Any]:
        """The fields of a row; the row itself where there are no templates.

        Args:
          row: by column.
          name: stands for it in messages.
          kept: columns that stay besides, where they are not made by a template.

        Raises:
          BadInput: a template names a column that the row lacks, or one that is neither text nor number among words.
        """
        if not self.templates:
            return dict(row)
        found = {column: row[column] for column in kept if column in row}
        for field, template in self.templates.items():
            pieces = list(string.Formatter().parse(template))
            for column in (column for _, column, _, _ in pieces if column is not None):
                if column not in row:
                    raise BadInput(
                        f"{name}: has nothing in {column!r}, which config.fields names; it has {shown_columns(row)}"
                    )
            if len(pieces) == 1 and not pieces[0][0] and pieces[0][1] is not None:
                found[field] = row[pieces[0][1]]
                continue
            values = {column: as_text(row[column]) for _, column, _, _ in pieces if column is not None}
            wrong = [column for column, value in values.items() if value is None]
            if wrong:
                raise BadInput(f"{name}: {wrong[0]!r} is neither text nor a number; config.fields puts it among words")
            found[field] = "".join(text + values.get(column, "") for text, column, _, _ in pieces)
        return found


def parse_fields(spec: str, known: Sequence[str]) -> FieldMap:
    """Reads `config.fields`.

    Args:
      spec: `FIELD=TEMPLATE; FIELD=TEMPLATE`, where a blank behind the sign belongs to the template; "" for rows that
        have the fields already.
      known: the fields that there are.

    Raises:
      BadInput: it is spelled otherwise, a field is unknown or named twice, or braces do not match.
    """
    templates: dict[str, str] = {}
    for part in _NEXT.split(spec) if spec.strip() else []:
        named = _PART.fullmatch(part)
        if named is None:
            raise BadInput(
                f"config.fields: {part!r} is not spelled FIELD=TEMPLATE; give such as"
                " 'prompt={question}; completion={answer}'"
            )
        field, template = named["field"], named["template"]
        if field not in known or field in templates:
            what = "is named twice" if field in templates else "is unknown"
            raise BadInput(f"config.fields: {field!r} {what}; choose of {', '.join(known)}")
        try:
            pieces = list(string.Formatter().parse(template))
        except ValueError as error:
            raise BadInput(f"config.fields: {field}: {error}; write a brace that is meant as such twice") from error
        if any(column == "" or spec or conversion for _, column, spec, conversion in pieces if column is not None):
            raise BadInput(f"config.fields: {field}: give plain names of columns in braces")
        templates[field] = template
    return FieldMap(templates)
