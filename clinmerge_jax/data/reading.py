"""Files of rows, text files, and folders of these as documents."""

import collections
import dataclasses
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from clinmerge_jax.data.documents import Document
from clinmerge_jax.data.field_map import parse_fields
from clinmerge_jax.data.row_files import as_text, holds_rows, read_rows, shown_columns
from clinmerge_jax.data.tfds_source import PREFIX, read_tfds
from clinmerge_jax.errors import BadInput

_KINDS = "'text', 'messages', 'conversations', 'prompt' and 'completion', or 'input' and 'output'"
_FIELDS = ("id", "text", "messages", "conversations", "prompt", "completion", "instruction", "input", "output")
# ShareGPT's names of who speaks.
_SPEAKERS = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant",
    "system": "system",
}  # fmt: skip


def read_documents(
    path: str, field: str, label: str | None = None, data_dir: str | None = None, fields: str = ""
) -> list[Document]:
    """Reads the documents of a file, a folder or a prepared data set.

    A `.txt` file is one document, and a folder has one in each of its `.txt` files; other files and folders are those
    of `row_files.read_rows`. A row has `text`; or `messages`; or `conversations` as ShareGPT has them; or `prompt` and
    `completion`; or `input` and `output` with an `instruction` before the input, if there is one; and an `id` where it
    wants to name itself. Rows with the same words and no id are told apart by how many of them came before.

    Args:
      path: a file, a folder, or `tfds:NAME` or `tfds:NAME:SPLIT` (the split is train otherwise).
      field: the config field that gave it, for messages.
      label: the column of a row that has its class; None where classes do not matter.
      data_dir: where the data sets of `tfds:` lie; None for that library's own folder.
      fields: which columns make these fields, as `field_map.parse_fields` reads it; "" where they are there.

    Raises:
      BadInput: naming the file and row, never quoting the text; or two rows share an id.
    """
    place = pathlib.Path(path).expanduser()
    columns = parse_fields(fields, _FIELDS)
    if path.startswith(PREFIX):
        rows = read_tfds(path, field, data_dir)
    elif place.is_dir() and not holds_rows(path):
        files = sorted(place.glob("*.txt"))
        if not files:
            raise BadInput(
                f"{field}: the folder {path} has no .txt file and no saved data set; give a folder of these, or a file"
            )
        return _told_apart(_text_document(str(file), file, file.name) for file in files)
    elif place.suffix == ".txt" and place.is_file():
        return [_text_document(path, place)]
    else:
        rows = read_rows(path, field)
    kept = ("id", *([label] if label is not None else []))
    return _told_apart(_document(columns.apply(row, name, kept), name, label, row) for name, row in rows)


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
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{file}: is not UTF-8 at byte {error.start}; save it as UTF-8") from error


def _text_document(name: str, file: pathlib.Path, given_id: str | None = None) -> Document:
    return Document(name, text=_filled({"text": _read_text(file)}, "text", name), given_id=given_id)


def _document(row: Mapping[str, Any], name: str, label: str | None, columns: Mapping[str, Any]) -> Document:
    about = {"given_id": _named(row, "id", name), "label": None if label is None else _named(row, label, name)}
    if label is not None and about["label"] is None:
        raise BadInput(f"{name}: has no {label!r} to balance classes by; give it to every row, or name no such field")
    given = [key for key in ("text", "messages", "conversations", "completion", "output") if row.get(key) is not None]
    if not given:
        raise BadInput(
            f"{name}: has none of {_KINDS}; it has {shown_columns(columns)}: say which is which, such as"
            " --config.fields='prompt={COLUMN}; completion={COLUMN}'"
        )
    if len(given) > 1:
        raise BadInput(
            f"{name}: has more than one of {_KINDS}; leave one of them, or say what is to be learned with config.fields"
        )
    match given[0]:
        case "text":
            return Document(name, text=_filled(row, "text", name), **about)
        case "messages" | "conversations":
            return Document(name, messages=conversation(row, given[0], name), **about)
        case "completion":
            prompt = _filled(row, "prompt", name)
        case "output":
            parts = [key for key in ("instruction", "input") if row.get(key)] or ["input"]
            prompt = "\n\n".join(_filled(row, key, name) for key in parts)
    return Document(name, prompt=prompt, completion=_filled(row, given[0], name), **about)


def conversation(row: Mapping[str, Any], key: str, name: str) -> list[dict[str, str]]:
    """The messages of a row, each with `role` and `content`, from `messages` or from ShareGPT's `conversations`.

    Raises:
      BadInput: they are no such messages, naming the row.
    """
    if key == "messages":
        check_messages(row[key], name)
        return row[key]
    turns = row[key]
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise BadInput(f"{name}: 'conversations' is no list of turns; give such a list")
    messages = []
    for turn in turns:
        speaker, words = turn.get("from"), turn.get("value")
        if not isinstance(words, str) or not isinstance(speaker, str):
            raise BadInput(f"{name}: a turn lacks the text 'from' or 'value'; give both to each turn")
        if speaker.lower() not in _SPEAKERS:
            raise BadInput(f"{name}: a turn is from {speaker[:40]!r}, which is unknown; give {', '.join(_SPEAKERS)}")
        messages.append({"role": _SPEAKERS[speaker.lower()], "content": words})
    return messages


def _filled(row: Mapping[str, Any], key: str, name: str) -> str:
    text = as_text(row.get(key))
    if text is None or not text.strip():
        raise BadInput(f"{name}: {key!r} is no text or empty; give some")
    return text


def _named(row: Mapping[str, Any], key: str, name: str) -> str | None:
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
