"""Kinds of instructions of the miniature that IFEval does not have, with their checkers."""

from collections.abc import Callable


def first_word(response: str, *, word: str) -> bool:
    """Check the first word, ignoring case and the marks around it."""
    first, *_ = response.split() or [""]
    return first.strip(".,:;!?\"'").casefold() == word.casefold()


def listed(response: str, *, items: tuple[str, ...]) -> bool:
    """Check that the answer is exactly these items in this order, with commas between; case is ignored."""
    return [part.strip(" .").casefold() for part in response.split(",")] == [item.casefold() for item in items]


def yes_or_no(response: str) -> bool:
    """Check that the answer is the word yes or the word no, with or without a full stop."""
    return response.strip().rstrip(".").casefold() in ("yes", "no")


MINIATURE: dict[str, Callable[..., bool]] = {
    "miniature:first_word": first_word,
    "miniature:listed": listed,
    "miniature:yes_or_no": yes_or_no,
}
