"""The command line: `python -m clinmerge_jax.main --config=configs/JOB.py[:arg] [--config.field=value ...]`.

Exit status: 0 done; 1 the run failed; 2 bad input, with one line that says what to mend.
"""

import importlib
import logging as python_logging
import re
import sys
from collections.abc import Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from clinmerge_jax.errors import BadInput

JOBS = ("merge", "sft", "miniature", "benchmark")

_CONFIG = config_flags.DEFINE_config_file("config", None, "The job: configs/JOB.py[:arg]", lock_config=True)


def _refuse(message: str) -> None:
    print("error:", " ".join(message.splitlines()), file=sys.stderr)
    sys.exit(2)


def _complaint(error: Exception) -> str:
    """One line for what the flag and config parsers raise: what is wrong where, and the mend."""
    cause: BaseException = error
    while cause.__context__ is not None:
        cause = cause.__context__
    if isinstance(cause, BadInput):  # from the config file's get_config
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
    if field:  # ConfigDict quotes the name that it does not know
        mend = f"did you mean {hint[1]}" if hint else "its config file lists the fields"
        return f"config.{field[1]}: is no field of this job; {mend}"
    return f"--config: {error}; {mend}"


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """absl's parser, but what it refuses ends with status 2 and one line."""
    try:
        rest = flags.FLAGS(argv)
        if _CONFIG.value is None:
            raise BadInput("--config: is missing; give --config=configs/merge.py")
        _ = _CONFIG.value.job  # a config file that could not be read complains at its first use
    except BadInput as error:
        _refuse(str(error))
    except (flags.Error, OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        _refuse(_complaint(error))
    if rest[1:]:
        _refuse(f"{rest[1]}: is an unknown argument; fields are set with --config.field=value")
    return rest


def main(_: Sequence[str]) -> None:
    """Runs the job that the config names."""
    config = _CONFIG.value
    logging.set_verbosity(logging.INFO)
    logging.set_stderrthreshold("info")
    python_logging.getLogger("jax").setLevel("WARNING")  # which backends it looked for is of no interest
    try:
        if config.job not in JOBS:
            raise BadInput(f"config.job: {config.job!r} is unknown; there are {', '.join(JOBS)}")
        importlib.import_module(f"clinmerge_jax.jobs.{config.job}").run(config)
    except BadInput as error:
        _refuse(str(error))


if __name__ == "__main__":
    app.run(main, flags_parser=_parse_flags)
