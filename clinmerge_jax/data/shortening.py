"""Shorten examples that are too long: the source is cut at its end, the answer never.

Training, evaluation and generation all use this rule. The source is the input text: the source of a task's item, the
prompt of a prompt and completion, or a conversation's longest message that is not the assistant's.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

Built = TypeVar("Built")
_ATTEMPTS = 8  # maximum number of builds, the first with the full source


def fit(
    build: Callable[[str], tuple[Built, int]], source: str, most: int, tokenizer: object, cut: bool = True
) -> tuple[Built | None, int, bool]:
    """Shortens a source until the example built from it fits.

    Args:
      build: a function from a source to the built example and its length in tokens.
      source: the full text.
      most: the maximum number of tokens.
      tokenizer: a transformers tokenizer.
      cut: False never shortens the source.

    Returns:
      The example built from the first shortened source that fits, or None if none does; the length of the last attempt
      in tokens; and whether the source was shortened.
    """
    shown = source
    for attempt in range(_ATTEMPTS):
        built, length = build(shown)
        if length <= most:
            return built, length, shown != source
        # The text at the new end may be tokenized differently, so each attempt removes twice as many per excess token.
        shorter = without_end(shown, (length - most) << attempt, tokenizer) if cut else None
        if shorter is None:
            break
        shown = shorter
    return None, length, shown != source


def without_end(text: str, count: int, tokenizer: object) -> str | None:
    """The text without its last `count` tokens, keeping at least one; None if it has only one or none."""
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ends = [end for _, end in found["offset_mapping"]]
    return text[: ends[max(len(ends) - count, 1) - 1]] if len(ends) > 1 else None


def longest_source(messages: Sequence[Mapping[str, str]]) -> int | None:
    """The index of the message to shorten: the longest that is not the assistant's; None if there is none."""
    places = [place for place, message in enumerate(messages) if message["role"] != "assistant"]
    return max(places, key=lambda place: len(messages[place]["content"]), default=None)


def with_content(messages: Sequence[Mapping[str, str]], place: int, content: str) -> list[dict[str, str]]:
    """A copy of the conversation with the content of one message replaced."""
    return [{**message, "content": content} if at == place else dict(message) for at, message in enumerate(messages)]
