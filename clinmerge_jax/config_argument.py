"""The argument of a config file (`configs/merge.py:slerp`), parsed strictly."""

from collections.abc import Sequence

from clinmerge_jax.errors import BadInput


def parse(arg: str, choices: Sequence[str]) -> str:
    """Returns the argument if it is one of the choices.

    Raises:
      BadInput: it is not one of them.
    """
    if arg not in choices:
        known = ", ".join(choice for choice in choices if choice)
        remedy = f"choose from {known}" if known else "leave it out"
        raise BadInput(f"--config: unknown argument {arg!r} after the colon; {remedy}")
    return arg
