"""The questions of a run: each task's items, its examples, and what is scored besides."""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from clinmerge_jax.checkpoint.digest import sha256
from clinmerge_jax.data.few_shot import choose
from clinmerge_jax.data.sets.files import Source
from clinmerge_jax.data.sets.prepared import prepare
from clinmerge_jax.errors import BadInput
from clinmerge_jax.evaluation.metrics import (
    METRICS,
    RESERVED,
    Metric,
    encoder_metrics,
    parse_composite,
    parse_external,
)
from clinmerge_jax.evaluation.metrics import named as metrics_named
from clinmerge_jax.evaluation.tasks.items import items
from clinmerge_jax.evaluation.tasks.leakage import Leakage, leakage
from clinmerge_jax.evaluation.tasks.made import MADE
from clinmerge_jax.evaluation.tasks.own import own_task
from clinmerge_jax.evaluation.tasks.table import named
from clinmerge_jax.evaluation.tasks.task import Item, Kind, Task


@dataclasses.dataclass(frozen=True, eq=False)
class Questions:
    """What of a task is asked.

    Attributes:
      task: what it is.
      items: of the split that is scored.
      train: of the training split, without those whose source is also asked; empty where there is none.
      leak: what training and scored split share; None where there is no training split.
      digests: SHA-256 by file.
      extra: metrics that the config asks for besides.
    """

    task: Task
    items: Sequence[Item]
    train: Sequence[Item]
    leak: Leakage | None
    digests: Mapping[str, str]
    extra: Sequence[Metric] = ()

    @property
    def name(self) -> str:
        """The task with its split."""
        return self.task.name if "@" in self.task.name else f"{self.task.name}@{self.task.test}"

    def shots(self, count: int, seed: int) -> list[Item]:
        """Examples from the training split alone.

        Raises:
          BadInput: there is no such split, it has too few, or its answers are no text.
        """
        if not count:
            return []
        if len(self.train) < count:
            raise BadInput(
                f"config.shots: {count} examples for {self.name}, whose training split has {len(self.train)} that are"
                " not asked too; give fewer, or 0"
            )
        chosen = choose(self.train, count, seed)
        if not all(isinstance(item.target if item.shown is None else item.shown, str) for item in chosen):
            raise BadInput(f"config.shots: {self.name} has no answers to show; give 0")
        return chosen

    @functools.cached_property
    def _digest(self) -> str:
        rows = [[item.id, dict(item.fields), repr(item.target), item.choices, item.turns] for item in self.items]
        return _sha256(rows)

    def digest(self) -> str:
        """Of the items."""
        return self._digest

    def train_digest(self) -> str:
        """Of the training split's targets, as floors use them."""
        return _sha256([[item.id, repr(item.target)] for item in self.train])


def read_questions(config: ConfigDict) -> list[Questions]:
    """Reads the tasks that a config names, and the user's own.

    Args:
      config: has tasks, data_dir, cache, offline, limit, own, and what `extra_metrics` reads.

    Raises:
      BadInput: no task is named, one is unknown or named twice, or its files are missing or wrong.
    """
    source, extra = Source(config.data_dir, config.cache, config.offline), extra_metrics(config)
    found = []
    for task in named(config.tasks) if config.tasks else []:
        if task.dataset in MADE:
            found.append(_questions(config, task, functools.partial(_made, task.dataset, source=source), {}, extra))
            continue
        about = prepare(task.dataset, source)
        if task.train not in about.left_out and not config.shots:
            logging.info("%s: there is no training split in %s; one floor is left out", task.name, config.data_dir)
            task = dataclasses.replace(task, train="")
        read = functools.partial(_items, task.dataset, source=source)
        found.append(_questions(config, task, read, about.sha256, extra))
        if left_out := about.left_out[task.test]:
            logging.warning("%s: %d rows without the part that is asked for are left out", task.name, left_out)
    if config.own.test:
        task, read = own_task(config.own)
        files = {split: path for split, path in (("test", config.own.test), ("train", config.own.train)) if path}
        rows = {split: read(split) for split in files}
        known = {pathlib.Path(path).name: sha256(pathlib.Path(path).expanduser()) for path in files.values()}
        found.append(_questions(config, task, lambda split, limit: rows[split][: limit or None], known, extra))
    if not found:
        raise BadInput("config.tasks: names no task; give some, or files of your own with config.own.test")
    names = [one.name for one in found]
    for name in names:
        if names.count(name) > 1:
            raise BadInput(f"config.tasks: {name} is named twice; name it once")
    return found


def _questions(
    config: ConfigDict,
    task: Task,
    read: Callable[[str, int], list[Item]],
    known: Mapping[str, str],
    extra: Sequence[Metric],
) -> Questions:
    asked = read(task.test, config.limit)
    if not asked:
        raise BadInput(f"task {task.name}: its split {task.test} has no items; name another")
    whole = read(task.train, 0) if task.train else []
    train = without_asked(whole, asked, task.name)
    by_text = task.kind is Kind.GENERATION and task.read is None and isinstance(asked[0].target, str)
    leak = leakage(whole, asked) if whole else None
    return Questions(task, asked, train, leak, known, extra if by_text else ())


def _made(dataset: str, split: str, limit: int, source: Source) -> list[Item]:
    return MADE[dataset].items(split, source)[: limit or None]


def _items(dataset: str, split: str, limit: int, source: Source) -> list[Item]:
    return items(dataset, split, source, limit)


def extra_metrics(config: ConfigDict) -> list[Metric]:
    """The metrics that a config asks for besides the tasks' own.

    Args:
      config: has metrics, composite, encoder, encoder_layer and external.

    Raises:
      BadInput: one is unknown or cannot be made.
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


def _sha256(rows: Any) -> str:
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def without_asked(train: Sequence[Item], asked: Sequence[Item], name: str) -> list[Item]:
    """The training items whose source is not asked too, so that no example gives an answer away.

    Raises:
      BadInput: all of them are asked: train and test are the same.
    """
    sources = {_plain(item.source) for item in asked}
    left = [item for item in train if _plain(item.source) not in sources]
    if train and not left:
        raise BadInput(f"task {name}: every training item is asked too; give another training file than the test's")
    if len(left) < len(train):
        logging.warning("%s: %d training items are asked too; they are no examples", name, len(train) - len(left))
    return left


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
