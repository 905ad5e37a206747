"""Read and tokenize prompts: raw text or conversations, chat template applied once, a single BOS token."""

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
_MEND = (
    f"give JSON lines, a JSON array, CSV, TSV or Parquet with one of {_KINDS}, or a .txt file with one prompt per line"
)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
      name: file, and line or row. Identifies the prompt in error messages, which never quote its text.
      id: the row's "id", or its number from 0.
      text: raw text; None for a conversation.
      messages: a conversation to be answered; None for raw text.
    """

    name: str
    id: str | int
    text: str | None = None
    messages: Sequence[Mapping[str, str]] | None = None


def read_prompts(path: str, field: str, fields: str = "") -> list[Prompt]:
    """Reads a file of prompts: a `.txt` file with one prompt per line, or any other file that `rows.read_rows` reads.

    A row has `prompt`, `messages` (OpenAI) or `conversations` (ShareGPT), and optionally an `id`. A conversation must
    not end with an assistant message.

    Args:
      path: the file.
      field: the config field that holds the path, for messages.
      fields: a map of columns to the fields above (`fields.Fields.parse`), from the config field `fields` beside
        `field`; empty if the rows have these fields themselves.

    Raises:
      BadInput: the file or a row is wrong. The message names the file and line or row, and never quotes the text.
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
            raise BadInput(f"{name}: 'prompt' is not text; give text")
        return Prompt(name, own, text=made["prompt"])
    messages = conversation(made, given[0], name)
    if messages[-1]["role"] == "assistant":
        raise BadInput(f"{name}: its conversation ends with an answer; leave out the assistant's last message")
    return Prompt(name, own, messages=messages)


def encode_prompt(
    prompt: Prompt, tokenizer, chat: bool | None = None, most: int = 0, cut: bool = False
) -> tuple[np.ndarray, bool]:
    """A prompt's tokens, int32 [T], with at most one BOS; and whether it was shortened.

    Args:
      prompt: raw text, which is tokenized directly, or a conversation, which the chat template renders once.
      tokenizer: a transformers tokenizer.
      chat: True puts raw text into the chat template, as a user message; None and False leave it raw.
      most: the maximum number of tokens; 0 for no limit.
      cut: whether to shorten a prompt that is too long: raw text from its end, or a conversation's longest message that
        is not the assistant's. Otherwise the prompt is returned in full.

    Raises:
      BadInput: there is no chat template, it refuses the conversation, the prompt has no tokens, or it does not fit
        even when shortened.
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
            raise BadInput(f"{prompt.name}: has no tokens; remove it")
        return tokens, len(tokens)

    if not (most and cut and source):
        return build(source)[0], False
    tokens, length, shortened = fit(build, source, most, tokenizer)
    if tokens is None:
        raise BadInput(
            f"{prompt.name}: has {length} tokens after the largest cut allowed, and {most} fit beside the answer; give"
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
    except jinja2.TemplateError as error:  # the template's error message may quote the conversation
        raise BadInput(f"{name}: the chat template refuses it; correct the conversation or the template") from error
