"""Exceptions that are one line for a person, without a traceback, and how a run ends by them."""

from clinmerge_jax import full_disk

_START, _END = 800, 400  # characters of a message that are shown: where it is wrong, and how to mend it


class BadInput(ValueError):
    """Input that a person has to mend.

    The message is one line: the file or config field, what is wrong with it, and the mend.
    `main` prints it without a traceback and ends with exit status 2.
    """


class RunFailure(Exception):
    """What ends a run whose input was good. The message is one line that says what to do; exit status 1."""


def ending(error: BaseException) -> tuple[str, int] | None:
    """The message and the exit status that an exception ends a run with; None for a fault of the program.

    A full disk is no bad input, even where it is what spoiled the input.
    """
    if isinstance(error, BadInput):
        return str(error), 2 if full_disk.cause_of(error.__cause__) is None else 1
    if isinstance(error, RunFailure):
        return str(error), 1
    full = full_disk.cause_of(error)
    return None if full is None else (full_disk.message(full), 1)


def one_line(message: str) -> str:
    """A message as it is printed. One that quotes pages of a file is cut in its middle."""
    line = " ".join(message.splitlines())
    return line if len(line) <= _START + _END else f"{line[:_START]} [...] {line[-_END:]}"
