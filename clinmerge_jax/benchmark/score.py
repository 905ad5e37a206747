"""Benchmarks scoring of stored answers: the whole job `evaluate`, trivial baselines and bootstrap included.

The answers come from a seeded generator. Where text is asked for, they are the words of a random item's reference, some
left out and some doubled; for a choice, a sentence with a letter. The floor is the time of the metric libraries alone:
counting the same answers and those of the trivial baselines once each.
"""

import os
import pathlib
import random
import sys
import tempfile
import time

from ml_collections import ConfigDict

from clinmerge_jax.benchmark.measuring import measure
from clinmerge_jax.data.sets.files import Source
from clinmerge_jax.evaluation import scoring
from clinmerge_jax.evaluation.systems import stored_row
from clinmerge_jax.evaluation.task_data import TaskData, read_tasks
from clinmerge_jax.metrics import Output
from clinmerge_jax.tasks.task import Item, Kind

_ROOT = pathlib.Path(__file__).parents[2]
_WHOLE, _COUNTS = "the whole scoring", "the libraries' counts alone"


def run(config: ConfigDict) -> None:
    """Runs the benchmark; see configs/benchmark.py for its fields."""
    measure.check_counts(config, "repeats")
    asked = read_tasks(config.tasks, Source(config.data_dir, config.cache))
    place = measure.place_with_space(config.output, 1e8)
    measured: dict[str, list[dict[str, float]]] = {_COUNTS: [], _WHOLE: []}
    with tempfile.TemporaryDirectory(prefix="score-", dir=place) as temporary:
        answers = pathlib.Path(temporary) / "answers"
        answers.mkdir()
        outputs = {one.name: _answers(one, config.seed) for one in asked}
        for one in asked:
            rows = (stored_row(item, output) for item, output in zip(one.items, outputs[one.name]))
            (answers / f"{one.name}.jsonl").write_text("".join(rows))
        for repeat in range(config.repeats):
            measured[_COUNTS].append({"seconds": _counting(asked, outputs)})
            measured[_WHOLE].append(measure.watch(_command(config, answers, pathlib.Path(temporary) / str(repeat))))
    items = {one.name: len(one.items) for one in asked}
    measure.record(place / "score.json", measured, items=items, draws=config.draws, load=os.getloadavg()[0])
    print(measure.ratios_table(measured, dict.fromkeys(measured, _COUNTS), "scoring"))
    print(
        f"{sum(items.values())} answers to {len(items)} tasks, {config.draws} draws of the bootstrap for every score."
    )


def _command(config: ConfigDict, answers: pathlib.Path, output: pathlib.Path) -> list[str]:
    return [
        sys.executable, "-m", "clinmerge_jax.main", f"--config={_ROOT / 'configs' / 'evaluate.py'}",
        f"--config.model=stored=answers:{answers}", f"--config.tasks={config.tasks}",
        f"--config.data_dir={config.data_dir}", f"--config.cache={config.cache}", "--config.offline=True",
        f"--config.draws={config.draws}", f"--config.output={output}",
    ]  # fmt: skip


def _counting(asked: list[TaskData], outputs: dict[str, list[Output]]) -> float:
    start = time.perf_counter()
    for one in asked:
        metrics = scoring.metrics_of(one.task, True)
        scoring.count(one.task, metrics, one.items, outputs[one.name])
        for name, answers in scoring.trivial_baselines(one.task, one.items, one.train).items():
            scoring.floor(one.task, scoring.metrics_of(one.task, False), one.items, name, answers)
    return time.perf_counter() - start


def _answers(one: TaskData, seed: int) -> list[Output]:
    rng = random.Random(f"stored answers/{one.name}/{seed}")
    return [_answer(one, item, rng) for item in one.items]


def _answer(one: TaskData, item: Item, rng: random.Random) -> Output:
    if one.task.kind is Kind.CHOICE:
        return Output(f"The answer is {rng.choice('ABCDE'[: len(item.choices)])}.")
    words = rng.choice(one.items).target.split(" ")
    return Output(" ".join(word for word in words for _ in range(rng.choice((0, 1, 1, 1, 2)))))
