"""Read files as documents to learn from."""

import collections
import dataclasses
from collections.abc import Iterable
from typing import Any

from clinmerge_jax.data.documents import Document
from clinmerge_jax.data.files.fields import Fields, is_plain, shown, suggestion
from clinmerge_jax.data.files.forms import conversation, filled, identifier
from clinmerge_jax.data.files.rows import read_rows
from clinmerge_jax.errors import BadInput

_FORMS = (("prompt", "completion"), ("text",), ("messages",), ("conversations",))  # what a `fields` map can make
_KINDS = "'text', 'messages', 'conversations', 'prompt' and 'completion', or 'input' and 'output'"
_MEND = f"give JSON lines, a JSON array, CSV, TSV or Parquet with {_KINDS}; or .txt files"


def read_documents(
    path: str, field: str, label: str | None = None, data_dir: str | None = None, fields: str | None = None
) -> list[Document]:
    """Reads the documents of a file, a folder or a prepared data set.

    A `.txt` file is one document; of a folder, each `.txt` file is one. `rows.read_rows` lists the other formats. A row
    has one of these forms:

    * `text`
    * `messages` (OpenAI: `role` and `content`)
    * `conversations` (ShareGPT: `from` and `value`)
    * `prompt` and `completion`
    * `input` and `output`, with an optional `instruction` before the input (Alpaca)

    An optional `id` identifies the row. Rows with the same content and no id get numbered ids.

    Args:
      path: a file, a folder, or `tfds:NAME` or `tfds:NAME:SPLIT` (split train by default).
      field: the config field that holds the path, for messages.
      label: the column that holds a row's class; None if classes are not needed.
      data_dir: the folder of prepared data sets for `tfds:`; None for the default folder of TensorFlow Datasets.
      fields: a map of columns to the fields above (`fields.Fields.parse`), from the config field `fields` beside
        `field`. Empty if the rows have one of the forms themselves; None if there is no such config field.

    Raises:
      BadInput: the file or a row is wrong, or two rows share an id. The message names the file and its line or row, and
        never quotes the text.
    """
    option = f"{field.rpartition('.')[0]}.fields"
    mapped = Fields.parse(fields, option, _FORMS) if fields else None
    rows = read_rows(path, field, _MEND, text="document", data_dir=data_dir)
    mend = f'--{option}="{{}}"' if fields is not None else None
    return _told_apart(_document(row.values, row.name, label, mapped, mend) for row in rows)


def _document(row: dict[str, Any], name: str, label: str | None, mapped: Fields | None, mend: str | None) -> Document:
    group = None
    if label is not None:
        if not is_plain(row.get(label)) or row[label] == "":
            raise BadInput(
                f"{name}: has no {label!r} to balance classes by; give it to every row, or name with config.label a"
                f" column that every row has; this one has {shown(row)}"
            )
        group = str(row[label])
    made = mapped.apply(row, name) if mapped else row
    about = {"given_id": identifier(made, name), "label": group}
    match _form(made, row, name, mend):
        case "text":
            return Document(name, text=filled(made, "text", name), **about)
        case "messages" | "conversations" as key:
            return Document(name, messages=conversation(made, key, name), **about)
        case "completion" as answer:
            prompt = filled(made, "prompt", name)
        case answer:
            parts = [key for key in ("instruction", "input") if made.get(key)] or ["input"]
            prompt = "\n\n".join(filled(made, key, name) for key in parts)
    return Document(name, prompt=prompt, completion=filled(made, answer, name), **about)


def _form(made: dict[str, Any], row: dict[str, Any], name: str, mend: str | None) -> str:
    """The field that determines the form of a row."""
    given = [key for key in ("text", "messages", "conversations", "completion", "output") if made.get(key) is not None]
    if len(given) > 1:
        given = [key for key in given if made[key] != ""]  # an empty cell of a table
    if len(given) == 1:
        return given[0]
    how = "rename them" if mend is None else "or map columns, " + mend.format(
        suggestion(row, ("prompt", "completion") if len(row) > 1 else ("text",))
    )  # fmt: skip
    raise BadInput(
        f"{name}: has {'more than one' if given else 'none'} of {_KINDS}; its columns are {shown(row)}; give one of"
        f" these, {how}"
    )


def _told_apart(documents: Iterable[Document]) -> list[Document]:
    """The documents with unique ids: copies without an id get a numbered one."""
    found: dict[str, Document] = {}
    copies: collections.Counter[str] = collections.Counter()
    for document in documents:
        if document.given_id is None:
            copies[document.id] += 1
            if copies[document.id] > 1:
                document = dataclasses.replace(document, given_id=f"{document.id}-{copies[document.id]}")
        if document.id in found:
            raise BadInput(
                f"{document.name}: has the same id as {found[document.id].name}; give each its own id, or none"
            )
        found[document.id] = document
    return list(found.values())
