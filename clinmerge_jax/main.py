"""The command line: `python -m clinmerge_jax.main --config=configs/JOB.py[:arg] [--config.field=value ...]`.

Exit status: 0 done; 1 the run failed; 2 bad input, with one line that says what to mend.
"""

import importlib
import sys
from typing import Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from clinmerge_jax.errors import BadInput

JOBS = ("merge", "sft", "miniature", "benchmark")

_CONFIG = config_flags.DEFINE_config_file("config", None, "The job: configs/JOB.py[:arg]", lock_config=True)


def _refuse(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """absl's parser, but what it refuses ends with status 2 and one line."""
    try:
        rest = flags.FLAGS(argv)
        if _CONFIG.value is None:
            raise BadInput("--config: is missing; give --config=configs/merge.py")
        _CONFIG.value.job  # a config file that could not be read complains at its first use
    except BadInput as error:
        _refuse(str(error))
    except (flags.Error, OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        _refuse(" ".join(str(error).strip('"').split()))
    if rest[1:]:
        _refuse(f"unknown argument {rest[1]!r}; fields are set with --config.field=value")
    return rest


def main(argv: Sequence[str]) -> None:
    """Runs the job that the config names."""
    del argv
    config = _CONFIG.value
    logging.set_verbosity(logging.INFO)
    logging.set_stderrthreshold("info")
    try:
        if config.job not in JOBS:
            raise BadInput(f"config.job: {config.job!r} is unknown; there are {', '.join(JOBS)}")
        importlib.import_module(f"clinmerge_jax.jobs.{config.job}").run(config)
    except BadInput as error:
        _refuse(str(error))


if __name__ == "__main__":
    app.run(main, flags_parser=_parse_flags)
