"""Exceptions that are one line for a person, without a traceback."""


class BadInput(ValueError):
    """Input that a person has to mend.

    The message is one line: the file or config field, what is wrong with it, and the mend.
    `main` prints it without a traceback and ends with exit status 2.
    """


class RunFailure(Exception):
    """What ends a run whose input was good. The message is one line that says what to do; exit status 1."""
