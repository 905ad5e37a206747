"""What a task is: the contract between data, prompts, metrics and jobs."""

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from clinmerge_jax.metrics.metric import Metric, Output


class Kind(enum.Enum):
    """The kind of answer that a task asks for."""

    GENERATION = "generation"  # a text, scored against a reference or by rules
    CHOICE = "choice"  # one of a few lettered options


@dataclasses.dataclass(frozen=True)
class Item:
    """One question of a task.

    Attributes:
      id: unique within the task, over all splits; Results have it only in salted form.
      name: file and row, which identify the item in messages; messages never quote its text.
      fields: the texts by the field names of a prompt's form.
      source: the text that is to be summarized or answered; trivial baselines copy it, and leakage is searched in it.
      target: the reference answer: a text, the letter of a choice, or what the metric takes in place of a text.
      choices: the texts of the options, A first; empty if a text is asked for.
      cluster: an id shared by items that are not independent (of one encounter); "" for the item's own id.
      label: the class over which few-shot examples are balanced.
      turns: the user messages after the first answer, one for each further turn.
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
    """The template of a prompt, with the names of an item's fields in braces.

    Attributes:
      question: the question of an item; ends with the cue for the answer ("Answer:", "Summary:").
      instruction: placed once before everything; "" for none.
      joint: the separator of question and answer in raw text; in a chat the answer is a message of its own.
      by_words: whether a choice is answered with the words of an option, and the options are not listed; else with its
        letter. The likeliest option is that whose tokens have the largest sum of log-probabilities, so options should
        be about equally long.
    """

    question: str
    instruction: str = ""
    joint: str = " "
    by_words: bool = False


@dataclasses.dataclass(frozen=True)
class Task:
    """A set of questions and how answers to them are scored.

    Attributes:
      name: as in the command line, tables and Results.
      kind: the kind of answer.
      dataset: the data set that it reads.
      form: the form of its prompts.
      metrics: the metrics of an answer; the first is the leading one. Those of a choice take letters.
      test: the split that is scored.
      train: the split of few-shot examples and of the fixed-target baseline; "" if there is none.
      max_new_tokens: maximum number of tokens of an answer.
      stop: texts that end an answer.
      read: extracts the part of an answer that is scored, such as its final number; None for all of it.
      chat: whether prompts go through the chat template, whatever the config says; None leaves it to the config.
      floors: whether trivial baselines, such as copying the input, are scored beside the models.
      trivial_baselines: from the items to the answers of the task's own baselines, by name; None for the usual ones.
      shareable: whether prompts and answers may be shown to others; never assumed, so False unless it is set.
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
    trivial_baselines: Callable[[Sequence[Item]], dict[str, list[Output]]] | None = None
    shareable: bool = False
