"""Tokenize documents and conversations, with a mask of the target tokens."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jinja2
import numpy as np

from clinmerge_jax.data.shortening import fit, longest_source, with_content
from clinmerge_jax.errors import BadInput

_DIGEST_LENGTH = 16  # hexadecimal digits; a collision among a million documents has probability 3e-8


@dataclasses.dataclass(frozen=True)
class Document:
    """Raw text, a conversation, or a prompt with its completion.

    Attributes:
      name: identifies the document in error messages, which never quote its text.
      text: raw text, all of which is learned.
      messages: a conversation; the assistant's answers are learned.
      prompt: context of the completion, not learned.
      completion: the text to learn after the prompt.
      given_id: the id given in the source row.
      label: the class over which few-shot subsets are balanced.
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
        """The document's text as JSON-serialisable values."""
        pair = [] if self.completion is None else [self.prompt, self.completion]
        return [self.text, self.messages, *pair]

    @functools.cached_property
    def digest(self) -> str:
        """A hash of the content, independent of the machine and of the document's place in a file."""
        return hashlib.sha256(json.dumps(self.content, sort_keys=True).encode()).hexdigest()[:_DIGEST_LENGTH]

    @property
    def id(self) -> str:
        """The given id, or the digest if none was given."""
        return self.digest if self.given_id is None else self.given_id


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A tokenized document.

    Attributes:
      tokens: token ids, [T] int32.
      targets: which tokens are predicted and scored, [T] bool; never the first.
      shortened: whether the source was cut at its end to fit.
    """

    tokens: np.ndarray
    targets: np.ndarray
    shortened: bool = False


def encode(
    document: Document, tokenizer, end: int | None = None, chat: bool = False, most: int = 0, cut: bool = True
) -> Encoded:
    """Tokenizes one document.

    Which tokens are targets:

    * Raw text is tokenized with the tokenizer's special tokens. Every token after the first is a target.
    * A conversation is rendered by the chat template. The targets are the assistant's answers with their end tokens:
      the tokens of the rendering up to and including an answer, beyond its longest common prefix with the rendering of
      the messages before it plus the generation prompt.
    * For a prompt and completion the common prefix is taken between the tokens of the joined text and those of the
      prompt alone. So a token that spans the boundary is a target.

    Two BOS tokens at the start become one.

    Args:
      document: raw text, a conversation, or a prompt and a completion, which are concatenated without a separator.
      tokenizer: a transformers tokenizer.
      end: the token id appended to raw text and completions unless they end with it already. The template ends
        conversations.
      chat: whether to turn a prompt and its completion into a conversation of two messages.
      most: the maximum number of tokens; 0 for no limit. Shortening cuts the prompt of a prompt and completion, or a
        conversation's longest message that is not the assistant's. The limit does not apply to raw text.
      cut: False refuses a document that is too long.

    Raises:
      BadInput: there is no chat template, it refuses the conversation or rewrites earlier turns; nothing or everything
        of a conversation or completion would be learned; or the document does not fit even when shortened.
    """
    if document.text is not None:
        tokens = _ended(_plain(document.text, tokenizer), end)
        if not tokens.size:
            raise BadInput(f"{document.name}: has no tokens; remove it")
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
    """The message that may be shortened ("" if none), and a function that encodes the conversation with a new one."""
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
    """The prompt, and a function that encodes the completion after a given prompt."""
    return document.prompt, lambda prompt: _encode_completion(document, prompt, tokenizer, end)


def _encode_chat(name: str, messages: Sequence[Mapping[str, str]], tokenizer) -> Encoded:
    if not tokenizer.chat_template:
        raise BadInput(f"{name}: is a conversation, but the tokenizer has no chat template; add one")
    try:
        return _encode_messages(name, messages, tokenizer)
    except jinja2.TemplateError as error:
        # The template's error message is left out: it may quote the conversation.
        system = any(message["role"] == "system" for message in messages)
        mend = "put its system message into the first user message" if system else "correct the conversation"
        raise BadInput(f"{name}: the chat template refuses it; {mend}, or correct the template") from error


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
        raise BadInput(f"{name}: has no assistant message or completion with content, so none of it would be scored")
    if np.all(tokens[~targets] == bos):
        raise BadInput(
            f"{name}: only the answer is left of it, so all of it would be scored; correct the prompt or the chat"
            " template, or give 'text'"
        )
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
    """The tokens, int32 [T], with at most one leading BOS: the text or the chat template may contain one already."""
    tokens, bos = np.asarray(ids, np.int32), tokenizer.bos_token_id
    if bos is None:
        return tokens
    others = np.flatnonzero(tokens != bos)
    leading = int(others[0]) if others.size else len(tokens)
    return tokens[max(leading - 1, 0) :]


def check_vocabulary(tokens: Iterable[np.ndarray], vocab_size: int, field: str, owner: str = "") -> None:
    """Refuses token ids beyond the model's vocabulary: looking up their embedding would give NaN.

    Args:
      tokens: the token ids of each text.
      vocab_size: of the model.
      field: what the message begins with: the config field that names the model, or the model's own name.
      owner: whose tokenizer it is, where `field` names several models.

    Raises:
      BadInput: a token id is too high; the message names it.
    """
    highest = max((int(one.max()) for one in tokens if len(one)), default=0)
    if highest >= vocab_size:
        raise BadInput(
            f"{field}: the tokenizer{owner and f' of {owner}'} gives token id {highest}, but vocab_size in its"
            f" config.json is {vocab_size}; tokenizer and weights belong to different models"
        )
