"""Evaluates models on tasks: collects their answers, scores them, and tests the differences.

Opens the models, reads the tasks, prepares every prompt and refuses what does not fit. Then it computes one cell after
another; a cell is a model, a task, a way of answering (generated text or the likeliest letter) and a seed. Each becomes
a line of results.jsonl as soon as it is done, so a killed run continues after the last one, and a rerun, or a run with
more models or tasks, computes what is missing. Trivial baselines and bounds are scored beside the models. The tables
are made anew from all lines.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import tqdm
from absl import logging
from ml_collections import ConfigDict

from clinmerge_jax import provenance
from clinmerge_jax.checkpoint.output import result_path
from clinmerge_jax.errors import BadInput
from clinmerge_jax.evaluation import human_sheet, scoring
from clinmerge_jax.evaluation.answering import GENERATED, Evaluator, PreparedPrompts, make_evaluators
from clinmerge_jax.evaluation.harness.run import run_harness
from clinmerge_jax.evaluation.harness.tasks import load_tasks
from clinmerge_jax.evaluation.plan import Planned, check, plan
from clinmerge_jax.evaluation.systems import System, parse_systems, read_stored, stored_row
from clinmerge_jax.evaluation.task_data import TaskData, read_task_data
from clinmerge_jax.metrics import Metric, Output
from clinmerge_jax.report.summary import write_summary
from clinmerge_jax.results.records import (
    COMPUTED,
    RESULTS_FILE,
    Cell,
    Result,
    ResultsFolder,
    key_of,
    read_results,
)
from clinmerge_jax.tasks.learned import read_learned, remarks
from clinmerge_jax.tasks.task import Kind


def run(config: ConfigDict) -> None:
    """Runs the evaluation that the config describes; see configs/evaluate.py for its fields."""
    systems = parse_systems(config.model)
    questions = read_task_data(config)
    check(config, systems, questions)
    for system in systems:
        _refuse(config.output, system, questions)
    evaluators = make_evaluators(systems, config)
    planned = list(plan(config, systems, questions))
    target = result_path(config.output)
    done = set() if config.overwrite else {result.key for result in read_results(target / RESULTS_FILE)}
    kept = {one.key: target / _generations(one) for one in planned}
    if config.save_generations:  # the answers are wanted now, even where the scores exist
        done -= {one.key for one in planned if one.cell.mode == GENERATED and not kept[one.key].is_file()}
    # Prompts that do not fit are refused before anything is written.
    prompts = {one.key: _asked(one, evaluators) for one in planned if one.key not in done}
    harness = _harness_tasks(config)
    with ResultsFolder(config.output) as folder:
        todo = [one for one in planned if one.key in prompts]
        print(f"{len(planned)} cells: {len(systems)} models, {len(questions)} tasks; {len(planned) - len(todo)} are"
              f" there already, {len(todo)} to do.")  # fmt: skip
        for line in _learned(planned):
            print(line)
        for one in questions:
            _floors(config, one, folder)
        for system in systems:
            cells = [one for one in todo if one.system is system]
            foreign = harness if system in evaluators and _harness_due(config, system, folder) else []
            if cells or foreign:
                _evaluate(config, system, evaluators.get(system), cells, prompts, foreign, folder)
        if config.human_sheet:
            _write_sheet(config, planned, questions, folder)
        if questions:
            print(write_summary(config, questions, folder))
        for system in evaluators if harness else []:
            print(f"lm-eval's scores of {system.name} are in {folder.path / _harness_file(config, system)}.")
        print(f"\n{folder.path / RESULTS_FILE} has a line for each cell. summary.md beside it has these tables,"
              " the .csv and .tex files the numbers.")  # fmt: skip
        print("Next: add models or tasks with the same --config.output; finished cells are not repeated.")


def _refuse(output: str, system: System, questions: Sequence[TaskData]) -> None:
    """Refuses an output folder inside a model's folder, and incomplete stored answers."""
    target = result_path(output).resolve()
    for part in system.parts:
        if part.path.resolve() in (target, *target.parents):
            raise BadInput(f"config.output: {target} is in the folder of a model; name another folder")
    if system.stored is not None:
        for one in questions:
            read_stored(system.stored, one.name, one.items)


def _learned(planned: Sequence[Planned]) -> list[str]:
    """Remarks on the models that were fine-tuned on a task they are asked, without duplicates."""
    lines = []
    for one in planned:
        known = [entry for part in one.system.parts for entry in read_learned(part.path)]
        task = one.questions.task
        lines += remarks(one.cell.system, known, task.name, task.form, one.cell.chat, one.questions.items)
    return list(dict.fromkeys(lines))


def _asked(one: Planned, evaluators: dict[System, Evaluator]) -> PreparedPrompts | None:
    """The prepared prompts of a cell; None where the answers are stored."""
    questions, cell = one.questions, one.cell
    if cell.stored:
        return None
    shots = questions.shots(cell.shots, cell.example_seed)
    asked = evaluators[one.system].ask(questions.task, questions.items, shots, cell.chat, cell.mode)
    if asked.cut:
        logging.warning("%s: the input of %d of %d items is cut to fit", cell, asked.cut, len(asked.items))
    return asked


def _evaluate(
    config: ConfigDict,
    system: System,
    evaluator: Evaluator | None,
    cells: Sequence[Planned],
    prompts: dict[str, PreparedPrompts | None],
    harness: Sequence[Any],
    folder: ResultsFolder,
) -> None:
    """Computes the cells of one model, and runs lm-eval's tasks on it."""
    digests: dict[str, Any] = {}
    if evaluator is not None:
        logging.info("loading %s", system.name)
        evaluator.load(max((prompts[one.key].length for one in cells), default=evaluator.longest))
        digests = system.digests()
    for one in cells:
        with tqdm.tqdm(total=len(one.questions.items), desc=str(one.cell), unit="item") as bar:
            outputs, about = _answers(config, one, prompts[one.key], evaluator, folder, bar.update)
        start = time.perf_counter()
        generated = one.cell.mode == GENERATED
        counts = scoring.count(one.questions.task, one.metrics, one.questions.items, outputs, generated)
        about |= {"scoring_seconds": round(time.perf_counter() - start, 2)}
        folder.add(_result(one.key, one.cell, one.questions, one.metrics, counts, about, one.settings, digests, folder))
    if harness and evaluator is not None:
        found = run_harness(
            evaluator.engine(evaluator.longest, with_eos=True),
            evaluator.tokenizer,
            harness,
            name=system.name,
            limit=config.limit,
            num_fewshot=config.shots or None,
            chat_template=config.chat_template if system.chat is None else system.chat,
            gen_kwargs={"max_gen_toks": config.max_new_tokens} if config.max_new_tokens else None,
            seed=config.seed,
        )
        folder.write(_harness_file(config, system), json.dumps({**found, "sha256": digests}, indent=1) + "\n")
    if evaluator is not None:
        evaluator.unload()


def _answers(
    config: ConfigDict,
    one: Planned,
    asked: PreparedPrompts | None,
    evaluator: Evaluator | None,
    folder: ResultsFolder,
    progress: Callable[[int], None],
) -> tuple[list[Output], dict[str, Any]]:
    """A cell's answers: stored, kept by an earlier run, or new. Kept as `config.save_generations` asks."""
    items, name = one.questions.items, one.questions.name
    kept = folder.path / _generations(one)
    if one.cell.stored or (kept.is_file() and not config.overwrite):
        outputs = read_stored(one.system.stored if one.cell.stored else kept.parent, name, items)
        about = {"items": len(items), "kept": not one.cell.stored}
        progress(len(items))
    else:
        outputs, about = evaluator.answers(asked, config.seed + one.cell.example_seed, progress)
        _write_form(one, asked, folder)
    if config.save_generations and one.cell.mode == GENERATED:
        rows = "".join(stored_row(item, output) for item, output in zip(items, outputs))
        folder.write(_generations(one), rows, private=True)
    return outputs, about


def _generations(one: Planned) -> str:
    """Path below the output of a cell's kept answers, in a folder that `answers:FOLDER` accepts."""
    return f"{human_sheet.GENERATIONS}/{human_sheet.folder_name(one.cell, one.answers)}/{one.questions.name}.jsonl"


def _harness_tasks(config: ConfigDict) -> list[Any]:
    if not config.harness_tasks:
        return []
    names = [name.strip() for name in config.harness_tasks.split(",")]
    return load_tasks(names, include_path=config.harness_include_path, data_dir=config.data_dir)


def _harness_file(config: ConfigDict, system: System) -> str:
    """Path below the output of lm-eval's results on a model: one file for each combination of settings."""
    names = ("harness_tasks", "limit", "shots", "max_new_tokens", "seed", *COMPUTED)
    chat = config.chat_template if system.chat is None else system.chat
    asked = {**{name: config[name] for name in names}, "chat": chat}
    key = key_of({"asked": asked, "system": system.fingerprint(""), "name": system.name})
    cell = Cell(system.name, system.seed, "", chat=chat, shots=config.shots)
    return f"harness/{human_sheet.folder_name(cell, key)}.json"


def _harness_due(config: ConfigDict, system: System, folder: ResultsFolder) -> bool:
    return config.overwrite or not (folder.path / _harness_file(config, system)).is_file()


def _floors(config: ConfigDict, questions: TaskData, folder: ResultsFolder) -> None:
    """Scores the trivial baselines of a task, which need no model."""
    task = questions.task
    metrics = scoring.metrics_of(task, False, questions.extra)
    for name, outputs in scoring.trivial_baselines(task, questions.items, questions.train).items():
        cell = Cell(name, 0, questions.name, floor=True)
        identity = {
            "cell": dataclasses.asdict(cell),
            "questions": questions.digest,
            "train": questions.train_digest,
            "metrics": {metric.name: metric.signature for metric in metrics},
        }
        key = key_of({**identity, "scoring": scoring.VERSION})
        if key in folder.known and not config.overwrite:
            continue
        counts = scoring.floor(task, metrics, questions.items, name, outputs)
        folder.add(_result(key, cell, questions, metrics, counts, {"items": len(outputs)}, {}, {}, folder))


def _result(
    key: str,
    cell: Cell,
    questions: TaskData,
    metrics: Sequence[Metric],
    counts: dict,
    about: dict,
    settings: dict,
    digests: dict,
    folder: ResultsFolder,
) -> Result:
    return Result(
        key,
        cell,
        {metric.name: float(metric.score(counts[metric.name].sum(axis=0))) for metric in metrics},
        {metric.name: metric.signature for metric in metrics},
        counts,
        folder.salted(questions.name, [item.id for item in questions.items]),
        folder.salted(questions.name, [item.cluster or item.id for item in questions.items]),
        about,
        {
            **provenance.environment(),
            "sha256": {"data": questions.digests, **digests},
            "questions": questions.digest,
            "settings": settings,
            "shareable": questions.task.shareable,
        },
    )


def _write_form(one: Planned, asked: PreparedPrompts, folder: ResultsFolder) -> None:
    """Writes the form of a cell's prompts, with the words left out unless the task is shareable."""
    prompter, item = asked.prompter, one.questions.items[0]
    shown = prompter.text(item) if one.questions.task.shareable else prompter.redacted(item)
    name = f"{human_sheet.folder_name(one.cell, one.answers)}_{one.cell.mode}_{one.questions.name}.txt"
    folder.write(f"prompts/{name}", shown + "\n")


def _write_sheet(
    config: ConfigDict, planned: Sequence[Planned], questions: Sequence[TaskData], folder: ResultsFolder
) -> None:
    cells = [one for one in planned if one.questions.task.kind is Kind.GENERATION]
    answers = {}
    for one in cells:
        kept = (folder.path / _generations(one)).parent
        outputs = read_stored(kept, one.questions.name, one.questions.items)
        answers[one.cell] = {item.id: output.text for item, output in zip(one.questions.items, outputs)}
    count = human_sheet.write(config.human_sheet, config.seed, [one.cell for one in cells], answers, questions, folder)
    if count:
        print(f"{count} answers to rate are in {folder.path / human_sheet.SHEET}; who wrote which is in"
              f" {folder.path / human_sheet.KEY}, which raters do not get.")  # fmt: skip
    else:
        print(f"{folder.path / human_sheet.SHEET} exists already and is left as it is; move it away to get a new one.")
