"""What a model is asked, and how its answer is scored: the contract between data, prompts, metrics and the job."""

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from clinmerge_jax.metrics.metric import Metric, Output


class Kind(enum.Enum):
    """What is asked for."""

    GENERATION = "generation"  # a text, scored against a reference or by rules
    CHOICE = "choice"  # one of a few lettered options


@dataclasses.dataclass(frozen=True)
class Item:
    """One question of a task.

    Attributes:
      id: its own within the task, in every split; Results show it salted only.
      name: file and row, which stand for it in messages, as its words never do.
      fields: the texts that a prompt's form names.
      source: of these, the text that is to be summarized or answered: what floors copy and leakage is looked for in.
      target: what a perfect answer is; of a choice its letter; for metrics that need more than text, what they take.
      choices: the texts of the options, A first; none where a text is asked for.
      cluster: what it shares with other items that are no independent evidence (an encounter); "" for its id.
      label: the class that few-shot examples are balanced over.
      turns: what the user says after the first answer, and after each further one.
      shown: the answer as a few-shot example shows it, such as the working of a sum; None for the target.
    """

    id: str
    name: str
    fields: Mapping[str, str]
    source: str
    target: Any
    choices: tuple[str, ...] = ()
    cluster: str = ""
    label: str | None = None
    turns: tuple[str, ...] = ()
    shown: str | None = None


@dataclasses.dataclass(frozen=True)
class Form:
    """How a prompt is put together: a template with the names of an item's fields in braces.

    Attributes:
      question: of an item; ends with what asks for the answer ("Answer:", "Summary:").
      instruction: once before everything; "" for none.
      joint: between question and answer where they are one text; a chat's answer stands alone.
    """

    question: str
    instruction: str = ""
    joint: str = " "


@dataclasses.dataclass(frozen=True)
class Task:
    """A set of questions and how answers to them are scored.

    Attributes:
      name: as the command line, tables and Results have it.
      kind: what is asked for.
      dataset: the data set that it reads.
      form: of its prompts.
      metrics: the scores of an answer; the first is the one that tables lead with. Those of a choice take letters.
      test: the split that is scored.
      train: the split of few-shot examples and fixed floors; "" where there is none.
      max_new_tokens: of an answer.
      stop: texts that end an answer.
      read: what of an answer is scored, such as the number that it ends with; None for all of it.
      chat: whether prompts go through the chat template whatever the config says; None leaves it to the config.
      floors: whether copying the input and the like are scored beside the models.
      made_up: the answers of floors of its own, by name, from the items; None for the usual ones.
      shareable: whether prompts and answers may be shown to others; a user says so, it is never presumed.
    """

    name: str
    kind: Kind
    dataset: str
    form: Form
    metrics: tuple[Metric, ...]
    test: str = "test"
    train: str = "train"
    max_new_tokens: int = 512
    stop: tuple[str, ...] = ()
    read: Callable[[str], str] | None = None
    chat: bool | None = None
    floors: bool = True
    made_up: Callable[[Sequence[Item]], dict[str, list[Output]]] | None = None
    shareable: bool = False
