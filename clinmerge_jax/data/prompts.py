"""Prompts as tokens: raw text or conversations, the chat template applied once, one BOS."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np

from clinmerge_jax.data.documents import without_second_bos
from clinmerge_jax.data.field_map import parse_fields
from clinmerge_jax.data.reading import conversation, numbered_lines
from clinmerge_jax.data.row_files import FORMATS, as_text, holds_rows, read_rows, shown_columns
from clinmerge_jax.data.shortening import fit, longest_source, with_content
from clinmerge_jax.errors import BadInput

_FIELDS = ("id", "prompt", "messages", "conversations")
_MEND = f"give {FORMATS}, with 'prompt' or 'messages', or text with a prompt a line"


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt; `name` stands for it in messages, its words never do.

    Attributes:
      name: file and line.
      id: the row's own "id", or its number from 0.
      text: raw text; None for a conversation.
      messages: a conversation that an answer is to follow.
    """

    name: str
    id: str | int
    text: str | None = None
    messages: Sequence[Mapping[str, str]] | None = None


def read_prompts(path: str, field: str, fields: str = "") -> list[Prompt]:
    """Reads the prompts of a file of rows, or of a text file with a prompt a line.

    A row (`row_files.read_rows`) has `prompt`, or `messages` or ShareGPT's `conversations` that an answer is to follow;
    and perhaps an `id`. Any file whose name does not say that it has rows is text.

    Args:
      path: the file.
      field: the config field that gave it, for messages.
      fields: which columns make these fields, as `field_map.parse_fields` reads it; "" where they are there.

    Raises:
      BadInput: naming the file and row, never quoting the text.
    """
    columns = parse_fields(fields, _FIELDS)
    if not holds_rows(path):
        if fields:
            raise BadInput(f"config.fields: {path} is read as a prompt a line and has no columns; give {FORMATS}")
        lines = numbered_lines(path, field, _MEND)
        if lines[0][1].lstrip().startswith(("{", "[")):
            raise BadInput(f"{path}: looks like JSON, and is named like text; name it .jsonl or .json as it is")
        return [Prompt(f"{path}:{number}", index, text=line) for index, (number, line) in enumerate(lines)]
    return [
        _prompt(columns.apply(row, name, ("id",)), name, index, row)
        for index, (name, row) in enumerate(read_rows(path, field))
    ]


def _prompt(row: Mapping[str, Any], name: str, index: int, columns: Mapping[str, Any]) -> Prompt:
    given = [key for key in ("prompt", "messages", "conversations") if key in row]
    if not given:
        raise BadInput(
            f"{name}: has none of 'prompt', 'messages' and 'conversations'; it has {shown_columns(columns)}: say which"
            " is the prompt, such as --config.fields='prompt={COLUMN}'"
        )
    if len(given) > 1:
        raise BadInput(f"{name}: has more than one of 'prompt', 'messages' and 'conversations'; give one of them")
    own = row.get("id", index)
    if not isinstance(own, (str, int)):
        raise BadInput(f"{name}: 'id' is neither text nor a whole number; give one of the two")
    if given == ["prompt"]:
        text = as_text(row["prompt"])
        if not text:
            raise BadInput(f"{name}: 'prompt' is no text; give some")
        return Prompt(name, own, text=text)
    messages = conversation(row, given[0], name)
    if messages[-1]["role"] == "assistant":
        raise BadInput(f"{name}: ends with an answer, so there is nothing to ask; take the last message out")
    return Prompt(name, own, messages=messages)


def encode_prompt(
    prompt: Prompt, tokenizer, chat: bool | None = None, most: int = 0, cut: bool = False
) -> tuple[np.ndarray, bool]:
    """A prompt's tokens, int32 [T], with no more than one BOS; and whether it was shortened.

    Args:
      prompt: raw text is taken as the tokenizer takes it; of a conversation the chat template makes text once.
      tokenizer: of transformers.
      chat: True puts raw text into the chat template, as a user's message; None and False leave it raw.
      most: tokens that there is room for; 0 for any number.
      cut: whether what is too long is shortened: raw text from its end, of a conversation the longest message that is
        not the assistant's. Otherwise it comes back as it is.

    Raises:
      BadInput: there is no chat template, it refuses the conversation, nothing is left to read, or shortening does not
        help.
    """
    messages = prompt.messages
    if messages is None and chat:
        messages = [{"role": "user", "content": prompt.text}]
    place = None if messages is None else longest_source(messages)
    source = prompt.text if messages is None else "" if place is None else messages[place]["content"]

    def build(source: str) -> tuple[np.ndarray, int]:
        if messages is None:
            ids = tokenizer(source)["input_ids"]
        else:
            shown = messages if place is None else with_content(messages, place, source)
            ids = _rendered(prompt.name, shown, tokenizer)
        tokens = without_second_bos(ids, tokenizer)
        if not tokens.size:
            raise BadInput(f"{prompt.name}: the tokenizer makes no token of it; remove it")
        return tokens, len(tokens)

    if not (most and cut and source):
        return build(source)[0], False
    tokens, length, shortened = fit(build, source, most, tokenizer)
    if tokens is None:
        raise BadInput(
            f"{prompt.name}: {most} tokens fit beside the answer, and cut as far as it may be it has {length}; give"
            " fewer new tokens with config.max_new_tokens"
        )
    return tokens, shortened


def _rendered(name: str, messages: Sequence[Mapping[str, str]], tokenizer) -> list[int]:
    if not tokenizer.chat_template:
        raise BadInput(
            f"{name}: is a conversation, but the tokenizer has no chat template; add one, or give 'prompt' and leave"
            " config.chat_template at False"
        )
    try:
        return tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=False
        )
    except jinja2.TemplateError as error:  # the template's own words may quote the conversation
        raise BadInput(f"{name}: the chat template refuses it; mend the conversation or the template") from error
