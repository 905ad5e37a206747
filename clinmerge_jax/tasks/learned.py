"""What a model was fine-tuned on, as its folder records it: which task, which items, in which form."""

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
    """A task that a model has learned.

    Attributes:
      task: its name, without the split.
      split: of the items.
      chat: whether the prompts went through the chat template.
      answer: what of a choice was learned, "letter" or "text".
      form: of the prompts.
      ids: of the items.
    """

    task: str
    split: str
    chat: bool
    answer: str
    form: Form
    ids: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As `provenance.json` has it."""
        return {**dataclasses.asdict(self), "ids": list(self.ids)}


def record(learned: Iterable[Learned]) -> dict[str, Any]:
    """What a result's provenance says of the tasks that it has learned; nothing where there are none."""
    rows = [one.to_json() for one in learned]
    return {_KEY: rows} if rows else {}


def read_learned(folder: pathlib.Path) -> list[Learned]:
    """What the model or adapter in a folder has learned, its start included; nothing where no record tells.

    Raises:
      BadInput: the record is not as this package writes it.
    """
    file = folder / RECORD
    if not file.is_file():
        return []
    try:
        rows = json.loads(file.read_bytes()).get(_KEY, [])
        return [Learned(**{**row, "form": Form(**row["form"]), "ids": tuple(row["ids"])}) for row in rows]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadInput(
            f"{file}: its {_KEY!r} is not as fine-tuning writes it; take it out, or make the model again"
        ) from error


def remarks(
    system: str, learned: Sequence[Learned], task: str, form: Form, chat: bool, items: Sequence[Item]
) -> list[str]:
    """What to say where a model is asked what it has learned.

    Args:
      system: the model's name.
      learned: what it has learned.
      task: that is asked, with its split if it has one of its own.
      form: of the prompts.
      chat: whether they go through the chat template.
      items: that are asked.

    Returns:
      Lines for people: which examples it has learned, and what differs in the way of asking.
    """
    lines = []
    for one in learned:
        if one.task != task.partition("@")[0]:
            continue
        lines.append(f"{system} was fine-tuned on {len(one.ids)} examples of {one.task}@{one.split}, {_way(one.chat)}")
        known = len({item.id for item in items} & set(one.ids))
        if known:
            lines.append(f"WARNING: {known} of the {len(items)} items of {task} are among what {system} has learned")
        if one.chat != chat:
            lines.append(
                f"WARNING: {task} is asked {_way(chat)}, and {system} has learned it {_way(one.chat)}; set"
                f" config.chat_template={one.chat}"
            )
        if one.form != form:
            lines.append(f"WARNING: {task} is asked in other words than {system} has learned it in")
    return lines


def _way(chat: bool) -> str:
    return "through the chat template" if chat else "as raw text"
