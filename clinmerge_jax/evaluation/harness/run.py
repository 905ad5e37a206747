"""Runs lm-eval's tasks with an engine, and keeps the parts of its results that may be stored."""

import importlib.metadata
import json
import os
from collections.abc import Sequence
from typing import Any

from clinmerge_jax import provenance
from clinmerge_jax.generation.engine import Engine

# Kept keys of lm-eval's results: scores and their settings. Keys that hold the machine's name or paths are left out.
_RESULTS = ("results", "groups", "group_subtasks", "versions", "n-shot", "higher_is_better", "n-samples")
_CONFIGS = (
    "dataset_path", "dataset_name", "training_split", "validation_split", "test_split", "fewshot_split", "num_fewshot",
    "description", "doc_to_text", "doc_to_target", "doc_to_choice", "target_delimiter", "fewshot_delimiter",
    "output_type", "generation_kwargs", "repeats", "filter_list", "metric_list",
)  # fmt: skip


def run_harness(
    engine: Engine,
    tokenizer,
    tasks: Sequence[Any],
    *,
    name: str = "clinmerge_jax",
    limit: int = 0,
    num_fewshot: int | None = None,
    chat_template: bool = False,
    gen_kwargs: dict[str, Any] | None = None,
    seed: int = 0,
    samples: bool = False,
) -> dict[str, Any]:
    """Scores one model on lm-eval's tasks.

    Args:
      engine: as in `ClinmergeLM`.
      tokenizer: a transformers tokenizer.
      tasks: from `load_tasks`.
      name: the model's name.
      limit: number of questions of each task, from the first on; 0 for all.
      num_fewshot: number of few-shot examples; None leaves it to the task.
      chat_template: whether prompts become conversations, with few-shot examples as earlier turns.
      gen_kwargs: generation arguments that override the tasks' own.
      seed: seed of few-shot examples and sampled answers.
      samples: whether prompts and answers are part of the results. They hold the data's text.

    Returns:
      Plain JSON: lm-eval's scores by task and group, the tasks' configs, "truncated" (the number of contexts truncated
      on the left), "max_length" and "environment".

    Raises:
      BadInput: as in `ClinmergeLM`.
    """
    # Otherwise lm-eval forks for its bootstrap after JAX has started.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    import lm_eval
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import handle_non_serializable

    from clinmerge_jax.evaluation.harness.model import ClinmergeLM

    lm = ClinmergeLM(engine, tokenizer, name, seed=seed)
    found = lm_eval.simple_evaluate(
        model=lm,
        tasks=list(tasks),
        num_fewshot=num_fewshot,
        limit=limit or None,
        log_samples=samples,
        apply_chat_template=chat_template,
        fewshot_as_multiturn=chat_template,
        gen_kwargs=gen_kwargs,
        task_manager=TaskManager(include_defaults=False),
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=None,
        fewshot_random_seed=seed,
    )
    kept = {key: found[key] for key in (*_RESULTS, "samples") if key in found}
    kept["configs"] = {
        task: {key: config[key] for key in _CONFIGS if key in config} for task, config in found["configs"].items()
    }
    kept |= {"model": name, "limit": limit, "chat_template": chat_template}
    kept |= {"seed": seed, "truncated": lm.truncated, "max_length": lm.max_length}
    environment = provenance.environment()
    environment["packages"]["lm_eval"] = importlib.metadata.version("lm_eval")
    kept["environment"] = environment
    return json.loads(json.dumps(kept, default=handle_non_serializable))
