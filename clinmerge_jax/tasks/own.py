"""A user's own task, defined by a config and files of rows."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from clinmerge_jax.data.files.fields import is_plain, places, shown
from clinmerge_jax.data.files.rows import Row, read_rows
from clinmerge_jax.data.files.tfds_source import PREFIX
from clinmerge_jax.data.sets.reading import LETTERS
from clinmerge_jax.errors import BadInput
from clinmerge_jax.metrics import METRICS, Metric, composite, named
from clinmerge_jax.tasks.items import option_lines
from clinmerge_jax.tasks.table import FORM, GROUPS, TASKS, overlap_metrics
from clinmerge_jax.tasks.task import Form, Item, Kind, Task

_NAME = re.compile(r"[a-z0-9][a-z0-9_]*", re.ASCII)
_OF_CHOICES = ("accuracy", "exact_match")
_UNBOUNDED = FORM.split(",")  # metrics that do not go up to 100
_MEND = "give JSON lines, a JSON array, CSV, TSV or Parquet"


def own_task(own: ConfigDict) -> tuple[Task, Callable[[str], list[Item]]]:
    """Builds the task that `config.own` describes, and the function that reads its items.

    Args:
      own: the fields of `own_fields`.

    Returns:
      The task, and a function from "test" or "train" to the items of that file.

    Raises:
      BadInput: a field is wrong. The reading function raises it too; it names file and line and never quotes text.
    """
    if not _NAME.fullmatch(own.name):
        raise BadInput(
            f"config.own.name: {own.name!r} is not a valid name; give lower-case letters, digits and underscores"
        )
    if own.name in TASKS or own.name in GROUPS:
        raise BadInput(f"config.own.name: a task {own.name!r} exists already; give another name")
    kinds = {kind.value: kind for kind in Kind}
    if own.kind not in kinds:
        raise BadInput(f"config.own.kind: {own.kind!r} is unknown; choose from {', '.join(kinds)}")
    kind = kinds[own.kind]
    if not (own.test or own.train):
        raise BadInput("config.own.test: is empty; name the file to score, or with config.own.train the file to learn")
    if own.max_new_tokens < 1:
        raise BadInput(f"config.own.max_new_tokens: is {own.max_new_tokens}; give 1 or more")
    default = f"{{{own.source}}}" if kind is Kind.GENERATION else f"Question: {{{own.source}}}\n{{choices}}\nAnswer:"
    form = Form(own.question or default, own.instruction)
    asked = places(form.question, "config.own.question")
    task = Task(
        own.name,
        kind,
        own.name,
        form,
        _metrics(own, kind),
        train="train" if own.train else "",
        max_new_tokens=own.max_new_tokens,
        floors=own.floors and kind is Kind.GENERATION,
        shareable=own.shareable,
    )

    def read(split: str) -> list[Item]:
        files = {"test": own.test, "train": own.train}
        if not files.get(split):
            raise BadInput(f"config.own: {own.name} has no split {split!r}; name its file with config.own.{split}")
        if files[split].startswith(PREFIX):
            raise BadInput(f"config.own.{split}: {files[split]} is not a file; save its rows in one, {_MEND}")
        found: dict[str, Item] = {}
        for row in read_rows(files[split], f"config.own.{split}", _MEND):
            item = _item(row, split, own, kind)
            lacking = [place for place in asked if place not in item.fields]
            if lacking:
                raise BadInput(
                    f"{item.name}: has no text {lacking[0]!r}, which config.own.question names; name one of its fields"
                )
            if item.id in found:
                raise BadInput(f"{item.name}: has the same {own.id!r} as {found[item.id].name}; give each row its own")
            found[item.id] = item
        return list(found.values())

    return task, read


def _metrics(own: ConfigDict, kind: Kind) -> tuple[Metric, ...]:
    """The task's metrics. A composite, if one is given, is built from its parts and comes first."""
    if kind is Kind.CHOICE:
        wrong = [name.strip() for name in own.metrics.split(",") if name.strip() not in ("", *_OF_CHOICES)]
        if wrong or own.composite:
            field = "metrics" if wrong else "composite"
            raise BadInput(
                f"config.own.{field}: for choices only {' and '.join(_OF_CHOICES)} are supported; name these"
            )
        return tuple(named(own.metrics or _OF_CHOICES[0], field="config.own.metrics"))
    metrics = tuple(named(own.metrics, field="config.own.metrics")) if own.metrics else overlap_metrics()
    if not own.composite:
        return metrics
    name, equals, parts = own.composite.partition("=")
    name = name.strip()
    if not equals or not _NAME.fullmatch(name) or name in METRICS:
        raise BadInput(
            f"config.own.composite: {own.composite!r} does not have the form NAME=METRIC,METRIC with a new name; give"
            " one that does"
        )
    chosen = named(parts, field="config.own.composite")
    unbounded = [part.name for part in chosen if part.name in _UNBOUNDED]
    if unbounded:
        raise BadInput(f"config.own.composite: {unbounded[0]} is not a score that goes up to 100; leave it out")
    return composite(name, chosen), *metrics


def _item(given: Row, split: str, own: ConfigDict, kind: Kind) -> Item:
    name, row = given.name, given.values
    fields = {key: str(value) for key, value in row.items() if is_plain(value)}
    choices: tuple[str, ...] = ()
    if kind is Kind.GENERATION:
        target = _text(row, own.target, name, "target")
    else:
        options = _options(row, own.choices, name)
        choices = tuple(options.values())
        target = _right(row, own.target, options, name)
        fields["choices"] = option_lines(choices)
    return Item(
        id=_text(row, own.id, name, "id") if row.get(own.id) is not None else f"{split}-{given.number}",
        name=name,
        fields=fields,
        source=_text(row, own.source, name, "source"),
        target=target,
        choices=choices,
        cluster=_cluster(row, own.cluster, name, split),
        label=_text(row, own.label, name, "label") if own.label else (target if choices else None),
    )


def _cluster(row: Mapping[str, Any], key: str, name: str, split: str) -> str:
    """The row's cluster. If a field is configured, scored rows must have it and training rows may lack it."""
    known = key and (split == "test" or row.get(key) is not None)
    return _text(row, key, name, "cluster") if known else ""


def _text(row: Mapping[str, Any], key: str, name: str, field: str) -> str:
    if key not in row:
        raise BadInput(f"{name}: has no {key!r}; name one of {shown(row)} with config.own.{field}")
    if not is_plain(row[key]) or not str(row[key]).strip():
        raise BadInput(f"{name}: {key!r} is empty or not text; give text in every row")
    return str(row[key])


def _options(row: Mapping[str, Any], key: str, name: str) -> dict[str, str]:
    """The options by key; the keys are letters if the row has a list."""
    given = row.get(key)
    if isinstance(given, list):
        given = dict(zip(LETTERS, given)) if len(given) <= len(LETTERS) else None
    if isinstance(given, dict):  # Parquet gives every row the letters of all rows, with None for its own gaps
        given = {letter: text for letter, text in given.items() if text is not None}
    if not isinstance(given, dict) or not 2 <= len(given) <= len(LETTERS):
        raise BadInput(f"{name}: {key!r} is not a list of 2 to {len(LETTERS)} options; name it with config.own.choices")
    return {letter: _text(given, letter, name, "choices") for letter in given}


def _right(row: Mapping[str, Any], key: str, options: Mapping[str, str], name: str) -> str:
    """The letter of the right option, which the row gives by key, by place from 0, or by text."""
    given = row.get(key)
    keys, texts = list(options), list(options.values())
    if isinstance(given, str):
        places = {place for names in (keys, texts) for place, one in enumerate(names) if one == given}
        if not places and given.isascii() and given.isdecimal():
            given = int(given)
    if isinstance(given, int) and not isinstance(given, bool):
        places = {given} & set(range(len(options)))
    elif not isinstance(given, str):
        raise BadInput(f"{name}: has no answer in {key!r}; name the right column with config.own.target")
    if len(places) != 1:
        what = "could be several of its options" if places else "is not one of its options"
        raise BadInput(f"{name}: the answer in {key!r} {what}; give its letter, its place from 0 or its text")
    return LETTERS[places.pop()]
