"""The record in a model's folder of what it was fine-tuned on: tasks, items and prompt forms."""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from clinmerge_jax.errors import BadInput
from clinmerge_jax.tasks.task import Form, Item

RECORD = "provenance.json"
_KEY = "learned"


@dataclasses.dataclass(frozen=True)
class Learned:
    """A task that a model was fine-tuned on.

    Attributes:
      task: the task's name, without the split.
      split: the split of the items.
      chat: whether the prompts went through the chat template.
      answer: what was learned of a multiple-choice answer, "letter" or "text".
      form: the form of the prompts.
      ids: the ids of the items.
    """

    task: str
    split: str
    chat: bool
    answer: str
    form: Form
    ids: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The entry in `provenance.json`."""
        return {**dataclasses.asdict(self), "ids": list(self.ids)}


def record(learned: Iterable[Learned]) -> dict[str, Any]:
    """The entry about learned tasks in a result's provenance; empty if there are none."""
    rows = [one.to_json() for one in learned]
    return {_KEY: rows} if rows else {}


def read_learned(folder: pathlib.Path) -> list[Learned]:
    """Reads what the model or adapter in a folder has learned, with what its start had; empty without a record.

    Raises:
      BadInput: the record is not in this package's format.
    """
    file = folder / RECORD
    if not file.is_file():
        return []
    try:
        rows = json.loads(file.read_bytes()).get(_KEY, [])
        return [Learned(**{**row, "form": Form(**row["form"]), "ids": tuple(row["ids"])}) for row in rows]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadInput(
            f"{file}: its {_KEY!r} does not have the form that fine-tuning writes; remove it, or train the model again"
        ) from error


def remarks(
    system: str, learned: Sequence[Learned], task: str, form: Form, chat: bool, items: Sequence[Item]
) -> list[str]:
    """Remarks on a model that is asked about a task it was fine-tuned on.

    Args:
      system: the model's name.
      learned: what it has learned, from `read_learned`.
      task: the name of the asked task, with its split if that is not the usual one.
      form: the form of the prompts.
      chat: whether the prompts go through the chat template.
      items: the asked items.

    Returns:
      Lines for people: which examples the model has learned, which asked items are among them, and how the prompts
      differ from those of the fine-tuning.
    """
    lines = []
    for one in learned:
        if one.task != task.partition("@")[0]:
            continue
        lines.append(f"{system} was fine-tuned on {len(one.ids)} examples of {one.task}@{one.split}, {_way(one.chat)}")
        known = len({item.id for item in items} & set(one.ids))
        if known:
            lines.append(
                f"WARNING: {known} of the {len(items)} items of {task} are among the training examples of {system}"
            )
        if one.chat != chat:
            lines.append(
                f"WARNING: {task} is asked {_way(chat)}, but {system} has learned it {_way(one.chat)}; set"
                f" config.chat_template={one.chat}"
            )
        if one.form != form:
            lines.append(f"WARNING: {task} is asked in other words than in the fine-tuning of {system}")
    return lines


def _way(chat: bool) -> str:
    return "through the chat template" if chat else "as raw text"
