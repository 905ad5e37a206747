"""Documents and conversations as tokens, with a mask of the tokens that count."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np

from clinmerge_jax.data.shortening import fit, longest_source, with_content
from clinmerge_jax.errors import BadInput

_DIGEST_LENGTH = 16  # hexadecimal digits: two of a million documents share one with a chance of 3e-8


@dataclasses.dataclass(frozen=True)
class Document:
    """Raw text, a conversation, or a prompt with its completion.

    Attributes:
      name: what stands for it in messages, as its words never do.
      text: raw text, all of which is learned.
      messages: a conversation, of which the assistant's answers are learned.
      prompt: what is read before the completion.
      completion: what is learned after the prompt.
      given_id: the row's own id.
      label: the class that few-shot subsets are balanced over.
    """

    name: str
    text: str | None = None
    messages: Sequence[Mapping[str, str]] | None = None
    prompt: str | None = None
    completion: str | None = None
    given_id: str | None = None
    label: str | None = None

    @property
    def content(self) -> list[Any]:
        """Its words as JSON holds them."""
        pair = [] if self.completion is None else [self.prompt, self.completion]
        return [self.text, self.messages, *pair]

    @functools.cached_property
    def digest(self) -> str:
        """Of its words: the same on every machine and wherever it stands in a file."""
        return hashlib.sha256(json.dumps(self.content, sort_keys=True).encode()).hexdigest()[:_DIGEST_LENGTH]

    @property
    def id(self) -> str:
        """Its own id, else its digest."""
        return self.digest if self.given_id is None else self.given_id


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One document as tokens.

    Attributes:
      tokens: ids, [T] int32.
      targets: which tokens are predicted and scored, [T] bool; never the first.
      shortened: whether the source lost its end, so that the rest fits.
    """

    tokens: np.ndarray
    targets: np.ndarray
    shortened: bool = False


def encode(
    document: Document, tokenizer, end: int | None = None, chat: bool = False, most: int = 0, cut: bool = True
) -> Encoded:
    """Tokenizes one document.

    Raw text gets the tokenizer's special tokens; every token after the first counts. Of a conversation, rendered by
    the chat template, the assistant's answers count with what ends them: what the rendering up to and with an answer
    has beyond the longest common prefix with the rendering that only asks for it. Of a prompt with its completion the
    same prefix decides, of prompt and completion as one text and of the prompt alone, so a token that holds the end
    of the one and the start of the other counts. Two BOS at the start become one.

    Args:
      document: raw text, a conversation, or a prompt and a completion, which are joined as they are.
      tokenizer: of transformers.
      end: what follows raw text and completions, if it is not there already; conversations end as the template says.
      chat: True makes a prompt and its completion a conversation of two messages.
      most: tokens that there is room for; 0 for any number. Of a prompt with its completion the prompt is shortened to
        fit, of a conversation the longest message that is not the assistant's. Raw text may have any number.
      cut: False refuses what is too long.

    Raises:
      BadInput: there is no chat template, it refuses the conversation or rewrites earlier turns, of a conversation or a
        completion nothing or everything would be learned, or what is never shortened does not fit.
    """
    if document.text is not None:
        tokens = _ended(_plain(document.text, tokenizer), end)
        if not tokens.size:
            raise BadInput(f"{document.name}: the tokenizer makes no token of it; remove it")
        return Encoded(tokens, np.arange(len(tokens)) > 0)
    if document.messages is not None or chat:
        source, build = _conversation(document, tokenizer)
    else:
        source, build = _completion(document, tokenizer, end)
    if not most:
        return build(source)

    def measured(source: str) -> tuple[Encoded, int]:
        encoded = build(source)
        return encoded, len(encoded.tokens)

    found, length, shortened = fit(measured, source, most, tokenizer, cut and bool(source))
    if found is None:
        raise BadInput(
            f"{document.name}: has {length} tokens, and config.length is {most}; answers are never cut"
            f"{'' if cut else ', and prompts only with config.too_long=cut'}; give a larger length, or leave it out"
        )
    return dataclasses.replace(found, shortened=shortened)


def _conversation(document: Document, tokenizer) -> tuple[str, Callable[[str], Encoded]]:
    """The message of a conversation that may be shortened, "" if there is none, and what encodes it with another."""
    messages = document.messages
    if messages is None:
        messages = [
            {"role": "user", "content": document.prompt}, {"role": "assistant", "content": document.completion},
        ]  # fmt: skip
    place = longest_source(messages)
    if place is None:
        return "", lambda source: _encode_chat(document.name, messages, tokenizer)
    return messages[place]["content"], lambda source: _encode_chat(
        document.name, with_content(messages, place, source), tokenizer
    )


def _completion(document: Document, tokenizer, end: int | None) -> tuple[str, Callable[[str], Encoded]]:
    """The prompt, and what encodes the completion after another prompt."""
    return document.prompt, lambda prompt: _encode_completion(document, prompt, tokenizer, end)


def _encode_chat(name: str, messages: Sequence[Mapping[str, str]], tokenizer) -> Encoded:
    if not tokenizer.chat_template:
        raise BadInput(f"{name}: is a conversation, but the tokenizer has no chat template; add one")
    try:
        return _encode_messages(name, messages, tokenizer)
    except jinja2.TemplateError as error:
        # The template's own words are left out: they may quote the conversation.
        system = any(message["role"] == "system" for message in messages)
        mend = "put its system message into the first user message" if system else "mend the conversation"
        raise BadInput(f"{name}: the chat template refuses it; {mend}, or mend the template") from error


def _encode_completion(document: Document, prompt: str, tokenizer, end: int | None) -> Encoded:
    tokens = _ended(_plain(prompt + document.completion, tokenizer), end)
    targets = np.arange(len(tokens)) >= _common_prefix(_plain(prompt, tokenizer), tokens)
    return _checked(document.name, tokens, targets, tokenizer.bos_token_id)


def _encode_messages(name: str, messages: Sequence[Mapping[str, str]], tokenizer) -> Encoded:
    if messages[0]["role"] == "assistant":
        raise BadInput(f"{name}: begins with an assistant message, which answers nothing; put a user message before it")

    def render(count: int, ask: bool) -> np.ndarray:
        first = list(messages[:count])
        ids = tokenizer.apply_chat_template(first, add_generation_prompt=ask, tokenize=True, return_dict=False)
        return without_second_bos(ids, tokenizer)

    tokens = render(len(messages), ask=False)
    targets = np.zeros(len(tokens), bool)
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        asked, answered = render(index, ask=True), render(index + 1, ask=False)
        if not np.array_equal(tokens[: len(answered)], answered):
            raise BadInput(f"{name}: the chat template rewrites earlier turns, so answers cannot be told apart")
        targets[_common_prefix(asked, answered) : len(answered)] = True
    return _checked(name, tokens, targets, tokenizer.bos_token_id)


def _checked(name: str, tokens: np.ndarray, targets: np.ndarray, bos: int | None) -> Encoded:
    if not targets[1:].any():
        raise BadInput(f"{name}: has no assistant message or completion with content, so nothing of it would be scored")
    if np.all(tokens[~targets] == bos):
        raise BadInput(f"{name}: nothing but the answer is left of it, so all of it would be scored; mend the prompt or"
                       " the chat template, or give 'text'")  # fmt: skip
    targets[0] = False
    return Encoded(tokens, targets)


def _plain(text: str, tokenizer) -> np.ndarray:
    return without_second_bos(tokenizer(text)["input_ids"], tokenizer)


def _ended(tokens: np.ndarray, end: int | None) -> np.ndarray:
    missing = end is not None and tokens.size and tokens[-1] != end
    return np.append(tokens, np.int32(end)) if missing else tokens


def _common_prefix(one: np.ndarray, other: np.ndarray) -> int:
    shared = min(len(one), len(other))
    differ = np.flatnonzero(one[:shared] != other[:shared])
    return int(differ[0]) if differ.size else shared


def without_second_bos(ids: Sequence[int], tokenizer) -> np.ndarray:
    """The tokens, int32 [T], with one BOS at most at their start: a text or a template may bring one of its own."""
    tokens, bos = np.asarray(ids, np.int32), tokenizer.bos_token_id
    if bos is None:
        return tokens
    others = np.flatnonzero(tokens != bos)
    leading = int(others[0]) if others.size else len(tokens)
    return tokens[max(leading - 1, 0) :]


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
