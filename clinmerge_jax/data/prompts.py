"""Prompts as tokens: raw text or conversations, the chat template applied once, one BOS."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np

from clinmerge_jax.data.documents import without_second_bos
from clinmerge_jax.data.files.fields import Fields, shown, suggestion
from clinmerge_jax.data.files.forms import conversation, identifier
from clinmerge_jax.data.files.rows import Row, read_rows
from clinmerge_jax.data.shortening import fit, longest_source, with_content
from clinmerge_jax.errors import BadInput

_FORMS = ("prompt", "messages", "conversations")
_KINDS = "'prompt', 'messages' and 'conversations'"
_MEND = f"give JSON lines, a JSON array, CSV, TSV or Parquet with one of {_KINDS}, or a .txt file with a prompt a line"


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt; `name` stands for it in messages, its words never do.

    Attributes:
      name: file, and line or row.
      id: the row's own "id", or its number from 0.
      text: raw text; None for a conversation.
      messages: a conversation that an answer is to follow.
    """

    name: str
    id: str | int
    text: str | None = None
    messages: Sequence[Mapping[str, str]] | None = None


def read_prompts(path: str, field: str, fields: str = "") -> list[Prompt]:
    """Reads a file of prompts: a `.txt` file with a prompt a line, or any other that `rows.read_rows` reads.

    A row has `prompt`, `messages` (OpenAI) or `conversations` (ShareGPT), and perhaps an `id`. Conversations end where
    the assistant is to answer.

    Args:
      path: the file.
      field: the config field that gave it, for messages.
      fields: a map of columns to the fields above (`fields.Fields.parse`), from the config field `fields` beside
        `field`; empty where rows have one of the forms themselves.

    Raises:
      BadInput: naming the file and line or row, never quoting the text.
    """
    option = f"{field.rpartition('.')[0]}.fields"
    mapped = Fields.parse(fields, option, [(key,) for key in _FORMS]) if fields else None
    return [
        _prompt(mapped.apply(row.values, row.name) if mapped else row.values, row, index, option)
        for index, row in enumerate(read_rows(path, field, _MEND, text="lines"))
    ]


def _prompt(made: Mapping[str, Any], row: Row, index: int, option: str) -> Prompt:
    name, given = row.name, [key for key in _FORMS if made.get(key) is not None]
    if len(given) > 1:
        given = [key for key in given if made[key] != ""]  # an empty cell of a table
    if len(given) != 1:
        raise BadInput(
            f"{name}: has {'more than one' if given else 'none'} of {_KINDS}; its columns are {shown(row.values)}; give"
            f' one of these, or map a column, --{option}="{suggestion(row.values, ("prompt",))}"'
        )
    identifier(made, name)
    own = index if made.get("id") in (None, "") else made["id"]
    if given == ["prompt"]:
        if not isinstance(made["prompt"], str) or not made["prompt"]:
            raise BadInput(f"{name}: 'prompt' is no text; give some")
        return Prompt(name, own, text=made["prompt"])
    messages = conversation(made, given[0], name)
    if messages[-1]["role"] == "assistant":
        raise BadInput(f"{name}: its conversation ends with an answer; leave out the assistant's last message")
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
