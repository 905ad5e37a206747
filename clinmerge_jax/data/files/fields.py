"""Map the columns of a row to its text, prompt, completion, conversation or id."""

import dataclasses
import re
import string
from collections.abc import Iterable, Mapping
from typing import Any

from clinmerge_jax.errors import BadInput

_CONVERSATIONS = ("messages", "conversations")
_NAME = re.compile(r"\w[\w./()#-]{0,39}(?: [\w./()#-]{1,20}){0,2}")
_MOST_SHOWN = 20  # columns


@dataclasses.dataclass(frozen=True)
class Fields:
    """A parsed map of fields.

    Attributes:
      templates: the template of each mapped field.
      option: the config field that holds the map, for messages.
    """

    templates: Mapping[str, str]
    option: str

    @classmethod
    def parse(cls, spec: str, option: str, forms: Iterable[tuple[str, ...]]) -> "Fields":
        """Parses a map such as "prompt={dialogue}; completion={note}; id={note_id}".

        Args:
          spec: fields and their templates, separated by semicolons. A template is text with column names in braces;
            literal braces are doubled. The template of a conversation is exactly one column.
          option: the config field that holds the map, for messages.
          forms: the accepted sets of fields; the map must have exactly one of them, plus optionally `id`.

        Raises:
          BadInput: the syntax is wrong, or the fields match none of the forms.
        """
        usage = "; ".join(f"{key}={{COLUMN}}" for key in next(iter(forms)))
        templates: dict[str, str] = {}
        for part in re.split(r";(?=\s*\w+\s*=|\s*$)", spec):
            if not part.strip():
                continue
            key, equals, template = part.partition("=")
            key, template = key.strip(), template.strip()
            if not equals or not places(template, option) or key in templates:
                raise BadInput(
                    f"{option}: does not have the form {usage}; map each field once, with a column in braces"
                )
            if key in _CONVERSATIONS and not re.fullmatch(r"\{[^{}]+\}", template):
                raise BadInput(f"{option}: {key} is more than one column; give only one column in braces")
            templates[key] = template
        if templates.keys() - {"id"} not in [set(form) for form in forms]:
            known = ", or ".join(" and ".join(form) for form in forms)
            raise BadInput(f"{option}: maps {shown(templates)}; map {known}, and optionally id")
        return cls(templates, option)

    def apply(self, row: Mapping[str, Any], name: str) -> dict[str, Any]:
        """Makes the mapped fields of a row from its columns. The row keeps its own `id` if none is mapped.

        Raises:
          BadInput: a column is missing, empty in this row, or not text or a number; the message names the row.
        """
        made = {key: self._field(key, template, row, name) for key, template in self.templates.items()}
        return {"id": row.get("id"), **made}

    def _field(self, key: str, template: str, row: Mapping[str, Any], name: str) -> Any:
        columns = places(template, self.option)
        for column in columns:
            if column not in row:
                raise BadInput(
                    f"{name}: has no column {column!r}, which {self.option} names; its columns are {shown(row)}"
                )
            if row[column] is None or row[column] == "":
                raise BadInput(
                    f"{name}: {column!r}, which {self.option} names, is empty; fill it, or leave the row out"
                )
            if key not in _CONVERSATIONS and not is_plain(row[column]):
                raise BadInput(
                    f"{name}: {column!r}, which {self.option} names, is neither text nor a number; name another column"
                )
        if key in _CONVERSATIONS:
            return row[columns[0]]
        return template.format_map(row)


def places(template: str, option: str) -> list[str]:
    """The column names in a template's braces, in order.

    Args:
      template: such as "Text: {input}"; literal braces are doubled.
      option: the config field that holds the template, for messages.

    Raises:
      BadInput: braces do not match, or contain anything but a column name.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise BadInput(f"{option}: {error}; write field names in braces, other braces twice") from error
    for _, name, spec, conversion in parts:
        if name is not None and (not name or spec or conversion or name.isdecimal() or re.search(r"[.\[\]]", name)):
            raise BadInput(f"{option}: {{{name}}} is not a plain field name; give such names in braces")
    return [name for _, name, _, _ in parts if name is not None]


def is_plain(value: Any) -> bool:
    """Whether a value is text or a number; numbers are formatted as Python prints them."""
    return isinstance(value, (str, int, float)) and not isinstance(value, bool)


def shown(columns: Iterable[str]) -> str:
    """Column names for a message. A text that is not name-like is not quoted: without a header it may be a note."""
    names = [f"'{name}'" if _NAME.fullmatch(name) else "(no plain name)" for name in columns]
    more = [f"{len(names) - _MOST_SHOWN} more"] if len(names) > _MOST_SHOWN else []
    return ", ".join(names[:_MOST_SHOWN] + more) or "none"


def suggestion(row: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    """Suggests a map of fields for a row: its longest text columns, longest first, assigned to these fields."""
    texts = [column for column, value in row.items() if isinstance(value, str) and value and column != "id"]
    plain = [column for column in texts if _NAME.fullmatch(column) and not re.search(r"[.:]", column)]
    longest = sorted(plain, key=lambda column: -len(row[column]))
    columns = longest if len(longest) >= len(keys) else [f"COLUMN{place}" for place, _ in enumerate(keys, start=1)]
    return "; ".join(f"{key}={{{column}}}" for key, column in zip(keys, columns))
