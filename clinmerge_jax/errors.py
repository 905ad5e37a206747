"""Exceptions reported in one line without a traceback, and the exit status of each."""

from clinmerge_jax import full_disk

_START, _END = 800, 400  # characters kept at either end of a long message: the place of the error, and the fix


class BadInput(ValueError):
    """Input that the user has to fix.

    The message is one line: the file or config field, what is wrong with it, and how to fix it.
    `main` prints it without a traceback and exits with status 2.
    """


class RunFailure(Exception):
    """Failure of a run whose input was good. The message is one line that says what to do; exit status 1."""


def ending(error: BaseException) -> tuple[str, int] | None:
    """The message and exit status with which an exception ends a run; None for a bug of the program.

    A full disk gives exit status 1, even where it caused a BadInput.
    """
    if isinstance(error, BadInput):
        return str(error), 2 if full_disk.cause_of(error.__cause__) is None else 1
    if isinstance(error, RunFailure):
        return str(error), 1
    full = full_disk.cause_of(error)
    return None if full is None else (full_disk.message(full), 1)


def one_line(message: str) -> str:
    """A message as one line. One over 1,200 characters, such as a quoted file, is cut in its middle."""
    line = " ".join(message.splitlines())
    return line if len(line) <= _START + _END else f"{line[:_START]} [...] {line[-_END:]}"
