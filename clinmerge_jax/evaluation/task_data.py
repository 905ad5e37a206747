"""Task data of a run: each task's items, its training split for few-shot examples, and extra metrics."""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence

from absl import logging
from ml_collections import ConfigDict

from clinmerge_jax.checkpoint.digest import sha256
from clinmerge_jax.data.few_shot import choose
from clinmerge_jax.data.sets.files import Source
from clinmerge_jax.data.sets.prepared import prepare
from clinmerge_jax.errors import BadInput
from clinmerge_jax.metrics import (
    METRICS,
    RESERVED,
    Metric,
    encoder_metrics,
    parse_composite,
    parse_external,
)
from clinmerge_jax.metrics import named as metrics_named
from clinmerge_jax.tasks.generated import GENERATED_SETS
from clinmerge_jax.tasks.items import items
from clinmerge_jax.tasks.leakage import Leakage, leakage, without_asked
from clinmerge_jax.tasks.own import own_task
from clinmerge_jax.tasks.table import named
from clinmerge_jax.tasks.task import Item, Kind, Task


@dataclasses.dataclass(frozen=True, eq=False)
class TaskData:
    """The data of one task.

    Attributes:
      task: the task.
      items: the items of the split that is scored.
      train: the items of the training split, without those that `without_asked` removes; empty if there is no such
        split.
      leak: what training and scored split share; None if there is no training split.
      digests: SHA-256 by file.
      extra: extra metrics that the config asks for.
    """

    task: Task
    items: Sequence[Item]
    train: Sequence[Item]
    leak: Leakage | None
    digests: Mapping[str, str]
    extra: Sequence[Metric] = ()

    @property
    def name(self) -> str:
        """The task's name with its split."""
        return self.task.name if "@" in self.task.name else f"{self.task.name}@{self.task.test}"

    def shots(self, count: int, seed: int) -> list[Item]:
        """Chooses few-shot examples, from the training split only.

        Raises:
          BadInput: there is no training split, it has too few items, or its answers are not text.
        """
        if not count:
            return []
        if len(self.train) < count:
            raise BadInput(
                f"config.shots: {count} examples for {self.name}, but its training split has {len(self.train)} that are"
                " not test items too; give fewer, or 0"
            )
        chosen = choose(self.train, count, seed)
        if not all(isinstance(item.target if item.shown is None else item.shown, str) for item in chosen):
            raise BadInput(f"config.shots: {self.name} has no answers to show; give 0")
        return chosen

    def shots_digest(self, count: int, seed: int) -> str:
        """A digest of the few-shot examples."""
        return _digest(self.shots(count, seed))

    @functools.cached_property
    def digest(self) -> str:
        """A digest of the scored items, with their target, their cluster and all that prompts show."""
        return _digest(self.items)

    @functools.cached_property
    def train_digest(self) -> str:
        """A digest of the training split, from which a trivial baseline takes its target."""
        return _digest(self.train)


def read_task_data(config: ConfigDict) -> list[TaskData]:
    """Reads the tasks that a config names, and the user's own task.

    Args:
      config: has tasks, data_dir, cache, offline, limit, shots, own, harness_tasks and the fields of `extra_metrics`.

    Raises:
      BadInput: no task is named, one is unknown or named twice, or its files are missing or wrong.
    """
    extra = extra_metrics(config)
    source = Source(config.data_dir, config.cache, config.offline)
    names = [name.strip() for name in config.tasks.split(",")]
    if config.own.test:  # asked whether or not config.tasks names it
        names = [name for name in names if name != config.own.name]
    tasks = ",".join(names)
    found = read_tasks(tasks, source, config.limit, bool(config.shots), extra) if tasks else []
    if config.own.test:
        task, read = own_task(config.own)
        files = {split: path for split, path in (("test", config.own.test), ("train", config.own.train)) if path}
        rows = {split: read(split) for split in files}
        known = {pathlib.Path(path).name: _content(pathlib.Path(path).expanduser()) for path in files.values()}
        asked = rows["test"][: config.limit or None]
        found.append(_questions(task, asked, rows.get("train", []), known, extra))
    read_names = [one.name for one in found]
    for name in read_names:
        if read_names.count(name) > 1:
            raise BadInput(f"config.tasks: {name} is named twice; name it once")
    if not found and not config.harness_tasks:
        raise BadInput("config.tasks: names no task; give some, or files of your own with config.own.test")
    return found


def _content(place: pathlib.Path) -> str | dict[str, str]:
    """SHA-256 of a file, or of each file of a folder saved by Hugging Face's datasets."""
    if place.is_file():
        return sha256(place)
    return {str(file.relative_to(place)): sha256(file) for file in sorted(place.rglob("*")) if file.is_file()}


def read_tasks(
    names: str, source: Source, limit: int = 0, shown: bool = False, extra: Sequence[Metric] = ()
) -> list[TaskData]:
    """Reads tasks of the table by name.

    Args:
      names: separated by commas.
      source: where the published files are.
      limit: maximum number of items of each task, from the first on; 0 for all.
      shown: whether few-shot examples are needed, so that training splits must be there.
      extra: extra metrics, for tasks that ask for text.

    Raises:
      BadInput: a name is unknown or named twice, or files are missing or wrong.
    """
    found = []
    for task in named(names):
        known: Mapping[str, str] = {}
        if task.dataset in GENERATED_SETS:
            made = GENERATED_SETS[task.dataset]
            asked = made.items(task.test, source)[: limit or None]
            train = made.items(task.train, source) if task.train else []
        else:
            about = prepare(task.dataset, source)
            known = about.sha256
            asked = items(task.dataset, task.test, source, limit)
            if task.train not in about.left_out and not shown:
                logging.info("%s: no training split is in %s; one floor is left out", task.name, source.data_dir)
                task = dataclasses.replace(task, train="")
            train = items(task.dataset, task.train, source) if task.train else []
            if about.left_out[task.test]:
                logging.warning("%s: %d rows lack the requested part and are left out", task.name,
                                about.left_out[task.test])  # fmt: skip
        found.append(_questions(task, asked, train, known, extra))
    return found


def _questions(
    task: Task, asked: list[Item], train: list[Item], known: Mapping[str, str], extra: Sequence[Metric]
) -> TaskData:
    if not asked:
        raise BadInput(f"task {task.name}: its split {task.test} has no items; name another")
    by_text = task.kind is Kind.GENERATION and task.read is None and isinstance(asked[0].target, str)
    leak = leakage(train, asked) if train else None
    return TaskData(task, asked, without_asked(train, asked, task.name), leak, known, extra if by_text else ())


def extra_metrics(config: ConfigDict) -> list[Metric]:
    """The metrics that a config asks for in addition to the tasks' own.

    Args:
      config: has metrics, composite, encoder, encoder_layer and external.

    Raises:
      BadInput: a metric is unknown or cannot be built.
    """
    known = dict(METRICS)
    if config.encoder:
        known |= (encoded := encoder_metrics(config.encoder, config.encoder_layer or None, "config.encoder"))
    if config.external:
        known |= (programs := parse_external(config.external, {*known, *RESERVED}))
    chosen = metrics_named(config.metrics, known, "config.metrics") if config.metrics else []
    chosen += encoded.values() if config.encoder else []
    chosen += programs.values() if config.external else []
    chosen += [parse_composite(config.composite, known)] if config.composite else []
    return chosen


def _digest(items: Sequence[Item]) -> str:
    rows = [
        [item.id, dict(item.fields), item.source, repr(item.target), item.choices, item.cluster, item.turns, item.shown]
        for item in items
    ]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
