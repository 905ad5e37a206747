"""Prompts of a task: an item and its few-shot examples, put into words by the task's form, as tokens. T tokens."""

import dataclasses
import string
from collections.abc import Sequence

import jinja2
import numpy as np

from clinmerge_jax.data.documents import without_second_bos
from clinmerge_jax.errors import BadInput
from clinmerge_jax.evaluation.tasks.task import Form, Item, Task

BETWEEN = "\n\n"  # instruction, examples and question of a prompt that is one text
_CUTS = 8  # times that an input is shortened before we give up


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt as tokens.

    Attributes:
      tokens: int32 [T], with one BOS at most.
      answers: of a choice, the tokens of each letter as it would follow, int32.
      cut: whether the item's source was shortened to make it fit.
    """

    tokens: np.ndarray
    answers: tuple[np.ndarray, ...] = ()
    cut: bool = False


@dataclasses.dataclass(frozen=True)
class Prompter:
    """Puts the items of a task into words that one model reads.

    Attributes:
      task: what is asked.
      tokenizer: of transformers.
      chat: whether prompts are a user's messages in the chat template, and examples turns before them.
      shots: examples, the same for every item.
      most: tokens that a prompt may have.
      cut: True shortens a source that is too long, from its end; False refuses it.
    """

    task: Task
    tokenizer: object
    chat: bool
    shots: Sequence[Item]
    most: int
    cut: bool

    def prompt(self, item: Item, letters: bool = False) -> Prompt:
        """The prompt of an item.

        Args:
          item: what is asked.
          letters: whether the answers of a choice are wanted too.

        Raises:
          BadInput: it is too long, holds a special token of the chat template, or lacks a field that the form names;
            its words are never quoted.
        """
        self._check_words(item)
        shown, shortened = item, False
        for attempt in range(_CUTS):
            text = self.text(shown)
            tokens = self._tokens(text, item.name)
            over, answers = len(tokens) + letters - self.most, ()  # a letter is one token at least
            if letters and over <= 0:
                answers = self._answers(text, tokens, _letters(item))
                over += max(map(len, answers)) - 1
            if over <= 0:
                return Prompt(tokens, answers, shortened)
            # Words may fall into other tokens where they end; so each further cut goes twice as far.
            shown, shortened = self._shortened(shown, over << attempt, len(tokens)), True
        raise self._too_long(item, len(tokens))

    def follow_up(self, item: Item, answers: Sequence[str]) -> np.ndarray:
        """The tokens of a later turn, int32 [T]: the conversation so far, and what the user says next.

        Raises:
          BadInput: as `prompt`; a later turn is never shortened.
        """
        messages = self.messages(item)
        for answer, turn in zip(answers, item.turns):
            messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": turn}]
        if self.chat:
            text = self._rendered(messages, item.name)
        else:
            text = BETWEEN.join(message["content"] for message in messages)
        tokens = self._tokens(text, item.name)
        if len(tokens) > self.most:
            raise self._too_long(item, len(tokens))
        return tokens

    def text(self, item: Item) -> str:
        """The prompt as text; in a chat with the template's own tokens."""
        if self.chat:
            return self._rendered(self.messages(item), item.name)
        form = self.task.form
        examples = [question(form, shot) + form.joint + answer(shot) for shot in self.shots]
        return BETWEEN.join([*([form.instruction] if form.instruction else []), *examples, question(form, item)])

    def messages(self, item: Item) -> list[dict[str, str]]:
        """The prompt as a conversation: examples are earlier turns, the instruction opens the first message."""
        form, messages = self.task.form, []
        for shot in self.shots:
            messages.append({"role": "user", "content": question(form, shot)})
            messages.append({"role": "assistant", "content": answer(shot)})
        messages.append({"role": "user", "content": question(form, item)})
        if form.instruction:
            messages[0]["content"] = form.instruction + BETWEEN + messages[0]["content"]
        return messages

    def redacted(self, item: Item) -> str:
        """The form of a prompt, with the names of its fields where their words would stand."""
        return dataclasses.replace(self, shots=[_redacted(shot) for shot in self.shots]).text(_redacted(item))

    def _answers(self, text: str, tokens: np.ndarray, letters: str) -> tuple[np.ndarray, ...]:
        """What the tokens have more once each letter follows the prompt."""
        joint = "" if self.chat else self.task.form.joint
        rows = self.tokenizer([text + joint + letter for letter in letters], **self._how)["input_ids"]
        wholes = [without_second_bos(ids, self.tokenizer) for ids in rows]
        if not all(np.array_equal(whole[: len(tokens)], tokens) for whole in wholes):
            raise BadInput(
                f"task {self.task.name}: the tokenizer joins the end of the prompt with the letter after it; end the"
                " question otherwise"
            )
        return tuple(whole[len(tokens) :] for whole in wholes)

    @property
    def _how(self) -> dict[str, bool]:
        """A chat template brings the special tokens itself; that a text is long is our business."""
        return {"add_special_tokens": not self.chat, "verbose": False}

    def _tokens(self, text: str, name: str) -> np.ndarray:
        ids = self.tokenizer(text, **self._how)["input_ids"]
        tokens = without_second_bos(ids, self.tokenizer)
        if not tokens.size:
            raise BadInput(f"{name}: the tokenizer makes no token of it; remove it")
        return tokens

    def _rendered(self, messages: list[dict[str, str]], name: str) -> str:
        if not self.tokenizer.chat_template:
            raise BadInput("config.chat_template: the model's tokenizer has no chat template; leave the field at False")
        try:
            return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except jinja2.TemplateError as error:  # the template's own words may quote the conversation
            raise BadInput(f"{name}: the chat template refuses it; mend the template") from error

    def _check_words(self, item: Item) -> None:
        """Refuses words that would be read as special tokens: a conversation within the conversation.

        A BOS in a prompt that is one text does no harm, as no more than one is left at its start.
        """
        special = set(self.tokenizer.all_special_tokens) - (set() if self.chat else {self.tokenizer.bos_token})
        for one in (item, *self.shots):
            texts = [*one.fields.values(), *one.turns, *([answer(one)] if one is not item else [])]
            for token in special:
                if any(token in text for text in texts):
                    twice = ", so the chat template would be applied twice" if self.chat else ""
                    mend = ", or set config.chat_template to False" if token == self.tokenizer.bos_token else ""
                    raise BadInput(f"{one.name}: holds {token}, a special token{twice}; give the words alone{mend}")

    def _shortened(self, item: Item, over: int, length: int) -> Item:
        """The item with a source that is `over` tokens shorter."""
        fields = [name for name, text in item.fields.items() if text == item.source]
        if not self.cut or not fields:
            raise self._too_long(item, length)
        ends = self.tokenizer(item.source, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
            "offset_mapping"
        ]
        if over >= len(ends):
            raise self._too_long(item, length)
        source = item.source[: ends[len(ends) - over - 1][1]]
        return dataclasses.replace(item, source=source, fields={**item.fields, **dict.fromkeys(fields, source)})

    def _too_long(self, item: Item, length: int) -> BadInput:
        mend = "shorten it" if self.cut else "shorten it, or set config.too_long=cut to cut what is to be read"
        return BadInput(
            f"{item.name}: its prompt has {length} tokens, and {self.most} fit beside the answer; {mend}, or ask for"
            " fewer shots or new tokens"
        )


def question(form: Form, item: Item) -> str:
    """The question of an item.

    Raises:
      BadInput: the form names a field that the item lacks.
    """
    try:
        return form.question.format_map(item.fields)
    except (KeyError, ValueError, IndexError) as error:
        named = ", ".join(fields_of(form))
        raise BadInput(
            f"{item.name}: does not fill the prompt's form, which names {named}; it has {', '.join(item.fields)}"
        ) from error


def fields_of(form: Form) -> list[str]:
    """The fields that a form names.

    Raises:
      BadInput: its braces do not match.
    """
    try:
        return list(
            dict.fromkeys(name for _, name, _, _ in string.Formatter().parse(form.question) if name is not None)
        )
    except ValueError as error:
        raise BadInput(f"the question's form: {error}; write a brace that is meant as such twice") from error


def answer(item: Item) -> str:
    """How an item's answer stands in an example."""
    return item.target if item.shown is None else item.shown


def _letters(item: Item) -> str:
    return string.ascii_uppercase[: len(item.choices)]


def _redacted(item: Item) -> Item:
    named = {name: f"<{name}>" for name in item.fields}
    return dataclasses.replace(item, fields=named, source="", shown="<answer>")
