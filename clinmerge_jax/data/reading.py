"""Files as documents: JSON lines, text files, folders of them."""

import collections
import dataclasses
import json
import pathlib
import re
from collections.abc import Iterable
from typing import Any

from clinmerge_jax.checkpoint.safetensors import parse_json
from clinmerge_jax.data.documents import Document
from clinmerge_jax.data.tfds_source import PREFIX, read_tfds
from clinmerge_jax.errors import BadInput

_KINDS = "'text', 'messages', 'prompt' and 'completion', or 'input' and 'output'"
_MEND = f"give JSON lines with {_KINDS}"


def read_documents(path: str, field: str, label: str | None = None, data_dir: str | None = None) -> list[Document]:
    """Reads the documents of a file, a folder or a prepared data set.

    A `.txt` file is one document, a folder has one in each of its `.txt` files; every other file has JSON lines. A row
    has `text`; or `messages`; or `prompt` and `completion`; or `input` and `output` with an `instruction` before the
    input, if there is one; and an `id` where it wants to name itself. Rows with the same words and no id are told apart
    by how many of them came before.

    Args:
      path: a file, a folder, or `tfds:NAME` or `tfds:NAME:SPLIT` (the split is train otherwise).
      field: the config field that gave it, for messages.
      label: the field of a row that has its class; None where classes do not matter.
      data_dir: where the data sets of `tfds:` lie; None for that library's own folder.

    Raises:
      BadInput: naming the file and line, never quoting the text; or two rows share an id.
    """
    place = pathlib.Path(path).expanduser()
    if path.startswith(PREFIX):
        rows = read_tfds(path, field, data_dir)
    elif place.is_dir():
        files = sorted(place.glob("*.txt"))
        if not files:
            raise BadInput(f"{field}: the folder {path} has no .txt file; give such a folder, or a file of JSON lines")
        rows = ((str(file), {"id": file.name, "text": _read_text(file)}) for file in files)
    elif place.suffix == ".txt" and place.is_file():
        rows = [(path, {"text": _read_text(place)})]
    else:
        lines = numbered_lines(path, field, _MEND)
        rows = ((f"{path}:{number}", parse_json(line, f"{path}:{number}")) for number, line in lines)
    return _told_apart(_document(row, name, label) for name, row in rows)


def numbered_lines(path: str, field: str, mend: str) -> list[tuple[int, str]]:
    """The lines of a text file that are not blank, with their numbers from 1.

    Args:
      path: the file.
      field: the config field that gave it.
      mend: what to give instead, for messages.

    Raises:
      BadInput: there is no such file, it is not UTF-8, or it is empty.
    """
    file = pathlib.Path(path).expanduser()
    if not file.is_file():
        raise BadInput(f"{field}: {path} is not a file; {mend}")
    lines = _read_text(file).split("\n")  # not splitlines: JSON text may hold U+2028 and its kin
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise BadInput(f"{path}: is empty; {mend}")
    return numbered


def check_unicode(row: Any, name: str) -> None:
    """Refuses JSON with text that is none.

    Raises:
      BadInput: naming the row.
    """
    if re.search("[\ud800-\udfff]", json.dumps(row, ensure_ascii=False)):
        raise BadInput(f"{name}: holds half of a surrogate pair, which is no Unicode text; write the file as UTF-8")


def check_messages(messages: Any, name: str) -> None:
    """Refuses what is no conversation.

    Raises:
      BadInput: naming the row.
    """
    if not isinstance(messages, list) or not messages:
        raise BadInput(f"{name}: 'messages' is no list of messages; give such a list")
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise BadInput(f"{name}: a message lacks the text 'role' or 'content'; give both to each message")


def _read_text(file: pathlib.Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(f"{file}: is not UTF-8 at byte {error.start}; save it as UTF-8") from error


def _document(row: Any, name: str, label: str | None) -> Document:
    check_unicode(row, name)
    if not isinstance(row, dict):
        raise BadInput(f"{name}: is no JSON object; {_MEND}")
    about = {"given_id": _named(row, "id", name), "label": None if label is None else _named(row, label, name)}
    if label is not None and about["label"] is None:
        raise BadInput(f"{name}: has no {label!r} to balance classes by; give it to every row, or name no such field")
    given = [key for key in ("text", "messages", "completion", "output") if row.get(key) is not None]
    if len(given) != 1:
        raise BadInput(f"{name}: has {'more than one' if given else 'none'} of {_KINDS}; give one of these")
    match given[0]:
        case "text":
            return Document(name, text=_filled(row, "text", name), **about)
        case "messages":
            check_messages(row["messages"], name)
            return Document(name, messages=row["messages"], **about)
        case "completion":
            prompt = _filled(row, "prompt", name)
        case "output":
            parts = [key for key in ("instruction", "input") if row.get(key)] or ["input"]
            prompt = "\n\n".join(_filled(row, key, name) for key in parts)
    return Document(name, prompt=prompt, completion=_filled(row, given[0], name), **about)


def _filled(row: dict[str, Any], key: str, name: str) -> str:
    if not isinstance(row.get(key), str) or not row[key].strip():
        raise BadInput(f"{name}: {key!r} is no text or empty; give some")
    return row[key]


def _named(row: dict[str, Any], key: str, name: str) -> str | None:
    value = row.get(key)
    if value is not None and (not isinstance(value, (str, int)) or value == ""):
        raise BadInput(f"{name}: {key!r} is neither text nor a whole number; give one of the two")
    return None if value is None else str(value)


def _told_apart(documents: Iterable[Document]) -> list[Document]:
    """The documents, each with an id of its own."""
    found: dict[str, Document] = {}
    copies: collections.Counter[str] = collections.Counter()
    for document in documents:
        if document.given_id is None:
            copies[document.id] += 1
            if copies[document.id] > 1:
                document = dataclasses.replace(document, given_id=f"{document.id}-{copies[document.id]}")
        if document.id in found:
            raise BadInput(
                f"{document.name}: has the same id as {found[document.id].name}; give each an id of its own, or none"
            )
        found[document.id] = document
    return list(found.values())
