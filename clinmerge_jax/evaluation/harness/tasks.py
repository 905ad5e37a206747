"""Loads lm-eval tasks by name: its own, YAML files, and two of its own on local data files."""

import importlib.util
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging

from clinmerge_jax.data.files.rows import read_rows
from clinmerge_jax.errors import BadInput

_FIELD = "config.harness_tasks"
_LETTERS = ("A", "B", "C", "D")


def require_lm_eval() -> None:
    """Checks that lm-eval (the extra `harness`) is installed.

    Raises:
      BadInput: lm-eval is not installed.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise BadInput(f"{_FIELD}: needs lm-eval; run pip install 'clinmerge_jax[harness]'")


def load_tasks(names: Sequence[str], *, include_path: str = "", data_dir: str = "") -> list[Any]:
    """Loads lm-eval's Task and Group objects, with their data.

    A name is a `.yaml` file; one of `LOCAL_TASKS` if its file is in `data_dir`; a task, group or pattern of the YAML
    files in `include_path`; or else a task of lm-eval itself. Only the last needs lm-eval's own index, which takes 6 s
    or more to read.

    Args:
      names: at least one.
      include_path: a folder of task YAML files; "" for none.
      data_dir: the folder of local data; "" for none.

    Raises:
      BadInput: lm-eval is not installed, a name is unknown, lm-eval refuses a task, or a data set is not available.
    """
    require_lm_eval()
    from lm_eval.tasks import TaskManager

    if include_path and not pathlib.Path(include_path).is_dir():
        raise BadInput(f"config.harness_include_path: {include_path} is not a folder; give one with task YAML files")
    if not names:
        raise BadInput(f"{_FIELD}: is empty; give a task of lm-eval, or several with commas between")
    manager = TaskManager(include_path=include_path or None, include_defaults=False)
    specs: list[Any] = []
    for name in names:
        if name.endswith(".yaml"):
            if not pathlib.Path(name).is_file():
                raise BadInput(f"{_FIELD}: {name} is not a file; give a task's YAML file")
            specs.append(name)
        elif data_dir and name in LOCAL_TASKS and (pathlib.Path(data_dir) / LOCAL_TASKS[name][0]).is_file():
            specs.append(local_task(name, data_dir))
        elif found := manager.match_tasks([name]):
            specs += found
        else:
            logging.info("reading lm-eval's own index of tasks for %s", name)
            manager = TaskManager(include_path=include_path or None)
            found = manager.match_tasks([name])
            if not found:
                raise BadInput(
                    f"{_FIELD}: {name!r} is not a task of lm-eval; list them with python -m"
                    " clinmerge_jax.evaluation.harness ls tasks"
                )
            specs += found
    try:
        loaded = manager.load(specs)
    except ValueError as error:  # a duplicate task, or an invalid YAML file
        reason = " ".join(str(error).splitlines()[:1])
        raise BadInput(f"{_FIELD}: lm-eval refuses the tasks ({reason}); correct the list or the YAML file") from error
    except OSError as error:  # raised by the datasets library without a network, a file or access
        reason = " ".join(str(error).splitlines()[:1])
        raise BadInput(
            f"{_FIELD}: a data set cannot be loaded ({reason}); correct the task's data_files, or fetch the data set"
            " where there is a network"
        ) from error
    grouped = {task.task_name for group in loaded["groups"].values() for task in group.get_all_tasks()}
    inner = {child for children in loaded["group_map"].values() for child in children}
    tasks = [task for name, task in loaded["tasks"].items() if name not in grouped]
    return [group for name, group in loaded["groups"].items() if name not in inner] + tasks


def local_task(name: str, data_dir: str) -> dict[str, Any]:
    """The config of one of lm-eval's own tasks, with its prompts and scores, on a local data file.

    The rows stay in memory; none are copied into a cache of the datasets library.

    Args:
      name: a key of `LOCAL_TASKS`.
      data_dir: the folder of local data.

    Raises:
      BadInput: there is no such task or file, or data that its checker needs are missing.
    """
    import datasets  # comes with lm-eval

    if name not in LOCAL_TASKS:
        raise BadInput(f"{_FIELD}: {name!r} is not a local task; choose from {', '.join(LOCAL_TASKS)}")
    file, config = LOCAL_TASKS[name]
    path = str(pathlib.Path(data_dir) / file)
    rows = [row.values for row in read_rows(path, "config.data_dir", f"put {file} into it")]

    def dataset(**_: Any) -> dict[str, datasets.Dataset]:
        return {"test": datasets.Dataset.from_list(rows)}

    return {"task": name, "custom_dataset": dataset, "test_split": "test", **config()}


def _mean(*metrics: str) -> list[dict[str, Any]]:
    return [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in metrics]


def _medqa_text(row: Mapping[str, Any]) -> str:
    options = "".join(f"{letter}. {row['options'][letter]}\n" for letter in _LETTERS)
    return f"Question: {row['question']}\n{options}Answer:"


def _medqa_target(row: Mapping[str, Any]) -> int:
    return _LETTERS.index(row["answer_idx"])


def _medqa() -> dict[str, Any]:
    return {
        "output_type": "multiple_choice",
        "doc_to_text": _medqa_text,
        "doc_to_target": _medqa_target,
        "doc_to_choice": list(_LETTERS),
        "metric_list": _mean("acc", "acc_norm"),
    }


def _ifeval() -> dict[str, Any]:
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError as error:  # otherwise lm-eval tries to download it and fails during scoring
        raise BadInput(
            f"{_FIELD}: ifeval of lm-eval counts sentences with NLTK's punkt_tab, which is missing; run python -m"
            " nltk.downloader punkt_tab"
        ) from error
    from lm_eval.tasks.ifeval import utils as checker

    by_instruction = [
        {"metric": metric, "aggregation": checker.agg_inst_level_acc, "higher_is_better": True}
        for metric in ("inst_level_strict_acc", "inst_level_loose_acc")
    ]
    return {
        "output_type": "generate_until",
        "num_fewshot": 0,
        "doc_to_text": "prompt",
        "doc_to_target": 0,
        "generation_kwargs": {"until": [], "do_sample": False, "temperature": 0.0, "max_gen_toks": 1280},
        "process_results": checker.process_results,
        "metric_list": _mean("prompt_level_strict_acc", "prompt_level_loose_acc") + by_instruction,
    }


# By lm-eval's name: the file in the folder of local data, and the rest of the task's config.
LOCAL_TASKS: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
    "medqa_4options": ("medqa/test.jsonl", _medqa),
    "ifeval": ("ifeval/input_data.jsonl", _ifeval),
}
