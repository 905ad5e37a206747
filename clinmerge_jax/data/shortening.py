"""What happens to an example that is too long: its source is shortened from the end, its answer never.

The one rule for training, evaluation and generation. The source is the text that is to be read: of a task's item its
source, of a prompt the prompt, of a conversation the longest message that is not the assistant's.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

Built = TypeVar("Built")
_ATTEMPTS = 8  # times that a source is shortened before we give up


def fit(
    build: Callable[[str], tuple[Built, int]], source: str, most: int, tokenizer: object, cut: bool = True
) -> tuple[Built | None, int, bool]:
    """Shortens a source until what is built from it fits.

    Args:
      build: from a source to what is built, and its length in tokens.
      source: the text as it was given.
      most: tokens that there is room for.
      tokenizer: of transformers.
      cut: False leaves the source as it is.

    Returns:
      What was built, from the first start of the source that was found to fit, or None if none does; the length of the
      last attempt in tokens; and whether the source was shortened.
    """
    shown = source
    for attempt in range(_ATTEMPTS):
        built, length = build(shown)
        if length <= most:
            return built, length, shown != source
        # The words at the new end may fall into other tokens, so each further attempt takes twice as much away.
        shorter = without_end(shown, (length - most) << attempt, tokenizer) if cut else None
        if shorter is None:
            break
        shown = shorter
    return None, length, shown != source


def without_end(text: str, count: int, tokenizer: object) -> str | None:
    """The text without its last `count` tokens, but with one at least; None where it has no more than one."""
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ends = [end for _, end in found["offset_mapping"]]
    return text[: ends[max(len(ends) - count, 1) - 1]] if len(ends) > 1 else None


def longest_source(messages: Sequence[Mapping[str, str]]) -> int | None:
    """Which message of a conversation is shortened: the longest that is not the assistant's; None without any."""
    places = [place for place, message in enumerate(messages) if message["role"] != "assistant"]
    return max(places, key=lambda place: len(messages[place]["content"]), default=None)


def with_content(messages: Sequence[Mapping[str, str]], place: int, content: str) -> list[dict[str, str]]:
    """The conversation with other words in one message."""
    return [{**message, "content": content} if at == place else dict(message) for at, message in enumerate(messages)]
