"""Documents and conversations as tokens, with a mask of the tokens that count."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np

from clinmerge_jax.checkpoint.safetensors import parse_json
from clinmerge_jax.errors import BadInput

_MEND = "give JSON lines with a 'text' or 'messages' field"


@dataclasses.dataclass(frozen=True)
class Document:
    """Raw text, or a conversation; `name` stands for it in messages, its words never do."""

    name: str
    text: str | None = None
    messages: Sequence[Mapping[str, str]] | None = None


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One document as tokens.

    Attributes:
      tokens: ids, [T] int32.
      targets: which tokens are predicted and scored, [T] bool; never the first.
    """

    tokens: np.ndarray
    targets: np.ndarray


def read_documents(path: str, field: str) -> list[Document]:
    """Reads JSON lines with a `text` or a `messages` field each.

    Raises:
      BadInput: naming the file and line, never quoting the text.
    """
    lines = numbered_lines(path, field, _MEND)
    return [_document(parse_json(line, f"{path}:{number}"), f"{path}:{number}") for number, line in lines]


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
    try:
        lines = file.read_text(encoding="utf-8").split("\n")  # not splitlines: JSON text may hold U+2028 and its kin
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: is not UTF-8 at byte {error.start}; save it as UTF-8") from error
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


def _document(row: Any, name: str) -> Document:
    check_unicode(row, name)
    if isinstance(row, dict) and isinstance(row.get("text"), str) and row["text"].strip():
        return Document(name, text=row["text"])
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list) or not messages:
        raise BadInput(f"{name}: has neither a non-empty 'text' nor 'messages'; give one of the two")
    check_messages(messages, name)
    return Document(name, messages=messages)


def encode(document: Document, tokenizer, end: int | None = None) -> Encoded:
    """Tokenizes one document.

    Raw text gets the tokenizer's special tokens, and `end` after them if that is given and not there
    already; every token after the first counts. Of a
    conversation, rendered by the chat template, the assistant's answers count: what the rendering
    up to and with an answer has beyond the longest common prefix with the rendering that only asks
    for it.

    Raises:
      BadInput: there is no chat template, no answer, or a template that rewrites earlier turns.
    """
    try:
        return _encode(document, tokenizer, end)
    except jinja2.TemplateError as error:
        # The template's own words are left out: they may quote the conversation.
        raise BadInput(
            f"{document.name}: the chat template refuses it; mend the conversation or the template"
        ) from error


def _encode(document: Document, tokenizer, end: int | None) -> Encoded:
    if document.messages is None:
        tokens = np.asarray(tokenizer(document.text)["input_ids"], np.int32)
        if not tokens.size:
            raise BadInput(f"{document.name}: the tokenizer makes no token of it; remove it")
        if end is not None and tokens[-1] != end:
            tokens = np.append(tokens, np.int32(end))
        return Encoded(tokens, np.arange(len(tokens)) > 0)
    if not tokenizer.chat_template:
        raise BadInput(f"{document.name}: is a conversation, but the tokenizer has no chat template; add one")

    def render(count: int, ask: bool) -> np.ndarray:
        messages = list(document.messages[:count])
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=ask, tokenize=True, return_dict=False)
        return np.asarray(ids, np.int32)

    tokens = render(len(document.messages), ask=False)
    targets = np.zeros(len(tokens), bool)
    for index, message in enumerate(document.messages):
        if message["role"] != "assistant":
            continue
        asked, answered = render(index, ask=True), render(index + 1, ask=False)
        if not np.array_equal(tokens[: len(answered)], answered):
            raise BadInput(
                f"{document.name}: the chat template rewrites earlier turns, so answers cannot be told apart"
            )
        shared = min(len(asked), len(answered))
        differ = np.flatnonzero(asked[:shared] != answered[:shared])
        targets[differ[0] if differ.size else shared : len(answered)] = True
    if not targets[1:].any():
        raise BadInput(f"{document.name}: has no assistant message with content, so nothing of it would be scored")
    targets[0] = False
    return Encoded(tokens, targets)


def check_vocabulary(encoded: Sequence[Encoded], vocab_size: int, field: str) -> None:
    """Refuses tokens that a model has no row for, which would be read as NaN.

    Raises:
      BadInput: naming the token id.
    """
    highest = max((int(document.tokens.max()) for document in encoded), default=0)
    if highest >= vocab_size:
        raise BadInput(
            f"{field}: the tokenizer gives token id {highest}, but vocab_size in its config.json is {vocab_size};"
            " tokenizer and weights belong to different models"
        )


def pack(encoded: Sequence[Encoded], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Lays documents end to end and cuts them into windows for training.

    Args:
      encoded: the documents, in order.
      length: predicted tokens per window.

    Returns:
      Tokens [N, length + 1] int32 and targets [N, length + 1] bool; what does not fill a window at
      the end is dropped, unless it is all there is, which is padded and not scored there.
    """
    stream = np.concatenate([document.tokens for document in encoded])
    scored = np.concatenate([document.targets for document in encoded])
    if len(stream) < length + 1:
        missing = length + 1 - len(stream)
        stream, scored = np.pad(stream, (0, missing)), np.pad(scored, (0, missing))
    count = (len(stream) - 1) // length
    starts = np.arange(count)[:, None] * length + np.arange(length + 1)
    return stream[starts], scored[starts]
