"""The one exception that means the input is at fault, not the program."""


class BadInput(ValueError):
    """Input that a person has to mend.

    The message is one line: the file or config field, what is wrong with it, and the mend.
    `main` prints it without a traceback and ends with exit status 2.
    """
