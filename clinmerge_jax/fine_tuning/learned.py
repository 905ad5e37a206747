"""Read the training sets that a config names: files, and tasks with the same prompts as in the evaluation.

`config.task`, `config.validation` and `config.replay.task` list sets separated by commas. A set is a task of the table
(NAME or NAME@SPLIT), a group of tasks, the user's own task (`config.own.name`), or a source for `data.examples.read`.
NAME=SHARE gives a set's share of the whole.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Sequence

from absl import logging
from ml_collections import ConfigDict

from clinmerge_jax.data.documents import Document, Encoded, encode
from clinmerge_jax.data.examples import read
from clinmerge_jax.data.sets.files import Source
from clinmerge_jax.data.sets.prepared import prepare
from clinmerge_jax.data.sets.table import SETS
from clinmerge_jax.errors import BadInput
from clinmerge_jax.tasks.generated import GENERATED_SETS
from clinmerge_jax.tasks.items import items
from clinmerge_jax.tasks.leakage import without_asked
from clinmerge_jax.tasks.learned import Learned
from clinmerge_jax.tasks.own import own_task
from clinmerge_jax.tasks.prompting import Prompter, answer
from clinmerge_jax.tasks.table import GROUPS, TASKS
from clinmerge_jax.tasks.task import Item, Task

LETTER, TEXT = "letter", "text"
_SHARED = re.compile(r"(?P<name>.+?)=(?P<share>\d+\.?\d*|\.\d+)")


@dataclasses.dataclass(frozen=True, eq=False)
class LearnedSet:
    """One training set.

    Attributes:
      name: its name in the config; for a task NAME@SPLIT.
      documents: the examples.
      encode: tokenizes one example.
      share: its share of the whole; 0 if none is given.
      about: for a task, the record stored with a result, without ids; None for files.
      credentialed: whether its data are under a data use agreement.
    """

    name: str
    documents: Sequence[Document]
    encode: Callable[[Document], Encoded]
    share: float = 0.0
    about: Learned | None = None
    credentialed: bool = False

    def learned(self, documents: Sequence[Document]) -> Learned | None:
        """The record of those documents that belong to this set; None if the set is not a task."""
        if self.about is None:
            return None
        ids = {document.id for document in self.documents}
        chosen = [document.id.partition("/")[2] for document in documents if document.id in ids]
        return dataclasses.replace(self.about, ids=tuple(chosen))


def list_names(spec: str, field: str) -> list[tuple[str, float]]:
    """The names that a field lists, each with its share; 0 if none is given.

    Raises:
      BadInput: a share is 0, or only some of the names have one.
    """
    if pathlib.Path(spec).expanduser().exists():  # the name of a file may contain a comma
        return [(spec, 0.0)]
    found = []
    for part in (part.strip() for part in spec.split(",")):
        named = _SHARED.fullmatch(part)
        found.append((named["name"], float(named["share"])) if named else (part, 0.0))
        if named and not found[-1][1]:
            raise BadInput(f"{field}: {named['name']} has the share 0; give more, or leave it out")
    if len({bool(share) for _, share in found}) > 1:
        raise BadInput(f"{field}: {spec!r} gives shares to some of its sets; give NAME=SHARE to each, or to none")
    return found


def refuse_unused_own(config: ConfigDict) -> None:
    """Refuses a config that describes a task of the user's own and trains on something else.

    Raises:
      BadInput: neither task, validation nor replay names it.
    """
    own = config.own
    specs = {"task": config.task, "validation": config.validation, "replay.task": config.replay.task}
    listed = [name for field, spec in specs.items() for name, _ in list_names(spec, f"config.{field}")]
    named = {name.partition("@")[0] for name in listed}
    if (own.train or own.test) and own.name not in named:
        raise BadInput(
            f"config.own: describes the task {own.name!r}, which config.task does not name; give"
            f" --config.task={own.name}"
        )


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads training sets for one model.

    Attributes:
      config: the job's config.
      tokenizer: the model's tokenizer.
      stop_ids: the token ids that end its answers.
      length: the maximum number of tokens of an example.
    """

    config: ConfigDict
    tokenizer: object
    stop_ids: Sequence[int]
    length: int

    def read(self, spec: str, field: str) -> list[LearnedSet]:
        """Reads the sets that a field lists.

        Args:
          spec: the value of the field.
          field: the name of the field. Class labels of files are read only for `config.task`. Task items that repeat,
            nearly repeat or share a cluster with items of the task's other splits are removed, because the evaluation
            may ask those; only `config.validation` keeps them.

        Raises:
          BadInput: a name is unknown or occurs twice, its files are missing, or it has nothing to learn.
        """
        listed = [(one, share) for name, share in list_names(spec, field) for one in GROUPS.get(name, (name,))]
        sets = [self._one(name, share, field) for name, share in listed]
        names = [one.name for one in sets]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise BadInput(f"{field}: {twice[0]} is named twice; name it once")
        return sets

    def _one(self, name: str, share: float, field: str) -> LearnedSet:
        base, _, split = name.partition("@")
        own = self.config.own
        if base in TASKS:
            return self._task(TASKS[base], split, share, field, lambda split: self._items(TASKS[base], split, field))
        if base == own.name and (own.train or own.test):
            task, read_own = own_task(own)
            there = [split for split in ("train", "test") if own[split]]
            return self._task(task, split, share, field, lambda split: (read_own(split), there))
        label = self.config.label if field == "config.task" else ""  # no subset is chosen from the other fields
        fields = self.config.replay.fields if field == "config.replay.task" else self.config.fields
        documents = read(name, field, label, self.config.data_dir, fields)
        return LearnedSet(name, documents, self._encode_document, share)

    def _items(self, task: Task, split: str, field: str) -> tuple[list[Item], Sequence[str]]:
        """The items of a split of a task in the table, and the names of the readable splits."""
        source = Source(self.config.data_dir, self.config.cache, self.config.offline)
        made = GENERATED_SETS.get(task.dataset)
        splits = list(prepare(task.dataset, source).left_out) if made is None else made.splits
        if split not in splits:
            raise BadInput(f"{field}: {task.name} has no split {split!r} here; choose from {', '.join(splits)}")
        return items(task.dataset, split, source) if made is None else made.items(split, source), splits

    @property
    def _cut(self) -> bool:
        return self.config.too_long == "cut"

    def _encode_document(self, document: Document) -> Encoded:
        config, eos = self.config, self.tokenizer.eos_token_id
        return encode(document, self.tokenizer, eos, config.chat_template, self.length, self._cut)

    def _task(
        self,
        task: Task,
        split: str,
        share: float,
        field: str,
        read_items: Callable[[str], tuple[list[Item], Sequence[str]]],
    ) -> LearnedSet:
        if task.name in TASKS and not task.train:
            raise _nothing_to_learn(task, field)
        split = split or ("" if field == "config.validation" else task.train)
        if not split:
            raise BadInput(f"{field}: {task.name} has no default split; give {task.name}@SPLIT")
        rows, splits = read_items(split)
        if not all(isinstance(answer(item), str) and answer(item).strip() and not item.turns for item in rows):
            raise _nothing_to_learn(task, field)
        if field != "config.validation":
            asked = [item for other in splits if other != split for item in read_items(other)[0]]
            rows = without_asked(rows, asked, task.name)
        chat = self.config.chat_template if task.chat is None else task.chat
        with_text = self.config.answer == TEXT and not task.form.by_words
        prompter = Prompter(task, self.tokenizer, chat, (), self.length, self._cut)
        by_id = {f"{task.name}/{item.id}": item for item in rows}
        documents = [
            Document(item.name, prompt=item.source, completion=answer(item, with_text), given_id=id, label=item.label)
            for id, item in by_id.items()
        ]

        def encode_item(document: Document) -> Encoded:
            return prompter.example(by_id[document.id], document.completion, self.stop_ids)

        about = Learned(task.name, split, chat, self.config.answer, task.form, ())
        logging.info("%s: %d examples of %s@%s", field, len(rows), task.name, split)
        credentialed = task.dataset in SETS and SETS[task.dataset].credentialed
        return LearnedSet(f"{task.name}@{split}", documents, encode_item, share, about, credentialed)


def _nothing_to_learn(task: Task, field: str) -> BadInput:
    """The error for a task whose items define how an answer is judged but have no reference answer."""
    able = ", ".join(name for name, one in TASKS.items() if one.train)
    return BadInput(f"{field}: {task.name} has no answers to learn; choose from {able}")
