"""lm-eval's own command with this package's engine among its models.

python -m clinmerge_jax.evaluation.harness run --model clinmerge_jax --model_args model=DIR,slots=32 --tasks TASKS

Everything else is lm-eval's: `--help`, `ls tasks`, --include_path, --num_fewshot, --apply_chat_template, --gen_kwargs.
"""

import os

from clinmerge_jax.command_line import refuse
from clinmerge_jax.errors import BadInput
from clinmerge_jax.evaluation.harness.tasks import require_lm_eval


def main() -> None:
    """Registers the engine and hands over; bad input ends as everywhere, with one line and status 2."""
    os.environ.setdefault("DISABLE_MULTIPROC", "1")  # lm-eval would fork for its bootstrap after JAX has started
    try:
        require_lm_eval()
        from lm_eval.__main__ import cli_evaluate
        from lm_eval.api.registry import model_registry

        model_registry.register("clinmerge_jax", target="clinmerge_jax.evaluation.harness.model:ClinmergeLM")
        cli_evaluate()
    except BadInput as error:
        refuse(str(error))


if __name__ == "__main__":
    main()
