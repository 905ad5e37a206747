"""Command-line errors: whatever absl and ml_collections refuse becomes one line and exit status 2."""

import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from absl import flags

from clinmerge_jax.errors import BadInput, one_line


def refuse(message: str, status: int = 2) -> NoReturn:
    """Prints one line to standard error and exits."""
    print("error:", one_line(message), file=sys.stderr)
    sys.exit(status)


def _complaint(error: Exception) -> str:
    """One line for an error of the flag or config parser: what is wrong, where, and how to fix it."""
    cause: BaseException = error
    while cause.__context__ is not None:
        cause = cause.__context__
    if isinstance(cause, BadInput):  # raised by the config file's get_config
        return str(cause)
    if isinstance(error, flags.IllegalFlagValueError):
        flag = str(error).partition(": ")[0].removeprefix("flag ")
        return f"{flag}: {' '.join(map(str, cause.args))}; give a value that fits"
    mend = "start with --config=configs/JOB.py and set its fields with --config.field=value"
    if isinstance(error, flags.UnrecognizedFlagError):
        return f"--{error.flagname}: is unknown; {mend}"
    if isinstance(error, OSError):
        return f"--config: {str(error).splitlines()[-1].strip().rpartition('] ')[2]}; {mend}"
    field, hint = (re.search(form, str(error)) for form in (r"^[\"'\\]+(\w+)", r'mean \\*"(\w+)'))
    if field:  # ConfigDict quotes the unknown name
        mend = f"did you mean {hint[1]}" if hint else "its config file lists the fields"
        return f"config.{field[1]}: is not a field of this job; {mend}"
    return f"--config: {error}; {mend}"


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses flags with absl; bad input prints one line and exits with status 2."""
    try:
        rest = flags.FLAGS(argv)
        if flags.FLAGS.config is None:
            raise BadInput("--config: is missing; give --config=configs/merge.py")
        _ = flags.FLAGS.config.job  # a config file that cannot be read raises at its first use
    except BadInput as error:
        refuse(str(error))
    except (flags.Error, OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        refuse(_complaint(error))
    if rest[1:]:
        refuse(f"{rest[1]}: is an unknown argument; fields are set with --config.field=value")
    return rest
