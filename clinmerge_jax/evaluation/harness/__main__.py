"""lm-eval's command line, with this package's engine among its models.

python -m clinmerge_jax.evaluation.harness run --model clinmerge_jax --model_args model=DIR,slots=32 --tasks TASKS

All other options are lm-eval's: `--help`, `ls tasks`, --include_path, --num_fewshot, --apply_chat_template,
--gen_kwargs.
"""

import importlib
import multiprocessing
import os

from clinmerge_jax.command_line import refuse
from clinmerge_jax.errors import BadInput
from clinmerge_jax.evaluation.harness.tasks import require_lm_eval


def main() -> None:
    """Registers the engine and runs lm-eval's command; bad input ends with one line and status 2."""
    # lm-eval starts processes for its bootstrap and its table; forking after JAX has started may hang.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    multiprocessing.set_start_method("forkserver")
    try:
        require_lm_eval()
        from lm_eval.__main__ import cli_evaluate

        importlib.import_module("clinmerge_jax.evaluation.harness.model")  # registers the engine
        cli_evaluate()
    except BadInput as error:
        refuse(str(error))


if __name__ == "__main__":
    main()
