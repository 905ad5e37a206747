"""Builds prompts: an item and its few-shot examples, formatted by the task's form and tokenized. T tokens."""

import dataclasses
import string
from collections.abc import Callable, Sequence

import jinja2
import numpy as np

from clinmerge_jax.data.documents import Encoded, without_second_bos
from clinmerge_jax.data.shortening import Built, fit
from clinmerge_jax.errors import BadInput
from clinmerge_jax.tasks.task import Form, Item, Task

BETWEEN = "\n\n"  # separates the instruction, the examples and the question


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt as tokens.

    Attributes:
      tokens: int32 [T], with at most one BOS token.
      answers: for a choice, the tokens of each letter, or of each option's words if the form says so, as a continuation
        of the prompt, int32.
      cut: whether the item's source was shortened to fit.
    """

    tokens: np.ndarray
    answers: tuple[np.ndarray, ...] = ()
    cut: bool = False


@dataclasses.dataclass(frozen=True)
class Prompter:
    """Builds a task's prompts for one model.

    Attributes:
      task: the task.
      tokenizer: a transformers tokenizer.
      chat: whether prompts are user messages in the chat template, with examples as earlier turns.
      shots: the few-shot examples, the same for every item.
      most: maximum number of tokens of a prompt; of a training example with its answer.
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
          item: the item.
          letters: whether to add the tokens of a choice's letters, or of its options' words.

        Raises:
          BadInput: the prompt is too long, the item holds a special token, or it lacks a field that the form names. The
            message never quotes the item's text.
        """
        self._check_words(item)

        def build(source: str) -> tuple[tuple[np.ndarray, tuple[np.ndarray, ...]], int]:
            text = self.text(_with_source(item, source))
            tokens = self._tokens(text, item.name)
            length, answers = len(tokens) + letters, ()  # an answer has at least one token
            if letters and length <= self.most:
                answers = self._answers(text, tokens, item.choices if self.task.form.by_words else _letters(item))
                length += max(map(len, answers)) - 1
            return (tokens, answers), length

        found, length, shortened = self._fitted(build, item)
        if found is None:
            raise self._too_long(item, length)
        return Prompt(*found, shortened)

    def example(self, item: Item, target: str, stop_ids: Sequence[int]) -> Encoded:
        """A training example: the tokens of `prompt`, then the answer and its end, which are learned.

        Args:
          item: the item.
          target: the answer.
          stop_ids: the tokens that end a model's answer. If the chat template puts some of them after an answer, the
            first of these is the last learned token. If it puts none there, and after raw text, the tokenizer's
            end-of-sequence token is learned if it is one of them, else the first of them.

        Raises:
          BadInput: as in `prompt`; or the answer and its end leave no room for the item, or no token ends an answer.
        """
        self._check_words(item, target)
        end = self._end(stop_ids)

        def build(source: str) -> tuple[tuple[np.ndarray, np.ndarray], int]:
            shown = _with_source(item, source)
            tokens = self._tokens(self.text(shown), item.name)
            learned = self._learned(shown, target, tokens, stop_ids, end)
            return (tokens, learned), len(tokens) + len(learned)

        found, length, shortened = self._fitted(build, item)
        if found is None:
            mend = "give a larger config.length, or leave it out"
            raise BadInput(
                f"{item.name}: its prompt and its answer, which is never cut, have {length} tokens, and config.length"
                f" is {self.most}; {mend if self.cut else f'set config.too_long=cut to shorten the prompt, or {mend}'}"
            )
        tokens, learned = found
        targets = np.arange(len(tokens) + len(learned)) >= len(tokens)
        return Encoded(np.concatenate([tokens, learned]), targets, shortened)

    def _fitted(self, build: Callable[[str], tuple[Built, int]], item: Item) -> tuple[Built | None, int, bool]:
        """Applies `shortening.fit` to the item's source."""
        cut = self.cut and item.source in item.fields.values()
        return fit(build, item.source, self.most, self.tokenizer, cut)

    def _learned(self, item: Item, target: str, asked: np.ndarray, stop_ids: Sequence[int], end: int) -> np.ndarray:
        """The learned tokens, int32: the answer and its end, given the prompt's tokens `asked`."""
        text = self.text(item)
        rest = self._rest(item, target, text) if self.chat else self.task.form.joint + target
        whole = self._tokens(text + rest, item.name)
        if np.array_equal(whole[: len(asked)], asked):
            learned = whole[len(asked) :]
        else:  # the tokenizer joins the end of the prompt with the answer, into a token that no prompt has
            learned = np.asarray(self.tokenizer(rest, add_special_tokens=False, verbose=False)["input_ids"], np.int32)
        ends = np.flatnonzero(np.isin(learned, [*stop_ids, end]))
        return learned[: ends[0] + 1] if ends.size else np.append(learned, np.int32(end))

    def _rest(self, item: Item, target: str, text: str) -> str:
        """The text after the prompt once the chat template has the answer."""
        messages = [*self.messages(item), {"role": "assistant", "content": target}]
        whole = self._rendered(messages, item.name, ask=False)
        if whole.startswith(text):
            return whole[len(text) :]
        place = whole.rfind(target)
        if place < 0:
            raise BadInput(
                f"{item.name}: the chat template changes the words of an answer, so they cannot be learned; correct the"
                " template, or set config.chat_template to False"
            )
        return whole[place:]

    def _end(self, stop_ids: Sequence[int]) -> int:
        """The token that ends an answer if the chat template adds none."""
        eos = self.tokenizer.eos_token_id
        if eos is None and not stop_ids:
            raise BadInput(
                "config.model: has no end-of-sequence token; add an eos_token_id to its generation_config.json"
            )
        return stop_ids[0] if eos is None or (stop_ids and eos not in stop_ids) else eos

    def follow_up(self, item: Item, answers: Sequence[str]) -> np.ndarray:
        """The prompt of a later turn, int32 [T]: the conversation so far, and the next user message.

        Raises:
          BadInput: as in `prompt`; a later turn is never shortened.
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
        """The prompt as text; in a chat with the template's special tokens."""
        if self.chat:
            return self._rendered(self.messages(item), item.name)
        form = self.task.form
        examples = [question(form, shot) + form.joint + answer(shot) for shot in self.shots]
        return BETWEEN.join([*([form.instruction] if form.instruction else []), *examples, question(form, item)])

    def messages(self, item: Item) -> list[dict[str, str]]:
        """The prompt as a conversation: examples are earlier turns; the instruction opens the first message."""
        form, messages = self.task.form, []
        for shot in self.shots:
            messages.append({"role": "user", "content": question(form, shot)})
            messages.append({"role": "assistant", "content": answer(shot)})
        messages.append({"role": "user", "content": question(form, item)})
        if form.instruction:
            messages[0]["content"] = form.instruction + BETWEEN + messages[0]["content"]
        return messages

    def redacted(self, item: Item) -> str:
        """The prompt with the names of its fields in place of their texts."""
        return dataclasses.replace(self, shots=[_redacted(shot) for shot in self.shots]).text(_redacted(item))

    def _answers(self, text: str, tokens: np.ndarray, answers: Sequence[str]) -> tuple[np.ndarray, ...]:
        """The tokens that each answer, a letter or an option, adds after the prompt."""
        joint = "" if self.chat else self.task.form.joint
        rows = self.tokenizer([text + joint + answer for answer in answers], **self._how)["input_ids"]
        wholes = [without_second_bos(ids, self.tokenizer) for ids in rows]
        if not all(np.array_equal(whole[: len(tokens)], tokens) for whole in wholes):
            raise BadInput(
                f"task {self.task.name}: the tokenizer joins the end of the prompt with the answer after it; end the"
                " question differently"
            )
        return tuple(whole[len(tokens) :] for whole in wholes)

    @property
    def _how(self) -> dict[str, bool]:
        """Tokenizer arguments. A chat template adds special tokens itself. `most` replaces length warnings."""
        return {"add_special_tokens": not self.chat, "verbose": False}

    def _tokens(self, text: str, name: str) -> np.ndarray:
        ids = self.tokenizer(text, **self._how)["input_ids"]
        tokens = without_second_bos(ids, self.tokenizer)
        if not tokens.size:
            raise BadInput(f"{name}: has no tokens; remove it")
        return tokens

    def _rendered(self, messages: list[dict[str, str]], name: str, ask: bool = True) -> str:
        if not self.tokenizer.chat_template:
            raise BadInput("config.chat_template: the model's tokenizer has no chat template; leave the field at False")
        try:
            return self.tokenizer.apply_chat_template(messages, add_generation_prompt=ask, tokenize=False)
        except jinja2.TemplateError as error:  # left out of the message, because it may quote the conversation
            raise BadInput(f"{name}: the chat template refuses it; correct the template") from error

    def _check_words(self, item: Item, target: str = "") -> None:
        """Refuses text that would be read as special tokens, such as a conversation within the conversation.

        A BOS token in a raw text does no harm, because only one is kept at its start.
        """
        special = set(self.tokenizer.all_special_tokens) - (set() if self.chat else {self.tokenizer.bos_token})
        for one in (item, *self.shots):
            texts = [*one.fields.values(), *one.turns, target if one is item else answer(one)]
            for token in special:
                if any(token in text for text in texts):
                    twice = ", so the chat template would be applied twice" if self.chat else ""
                    mend = ", or set config.chat_template to False" if token == self.tokenizer.bos_token else ""
                    raise BadInput(f"{one.name}: holds {token}, a special token{twice}; remove it{mend}")

    def _too_long(self, item: Item, length: int) -> BadInput:
        mend = "shorten it" if self.cut else "shorten it, or set config.too_long=cut to cut what is to be read"
        return BadInput(
            f"{item.name}: its prompt has {length} tokens, and {self.most} fit beside the answer; {mend}, or give fewer"
            " shots or new tokens"
        )


def question(form: Form, item: Item) -> str:
    """The question of an item, formatted by the form.

    Raises:
      BadInput: the form names a field that the item lacks.
    """
    try:
        return form.question.format_map(item.fields)
    except (KeyError, ValueError, IndexError) as error:
        named = ", ".join(fields_of(form))
        raise BadInput(
            f"{item.name}: lacks a field of the question, which names {named}; it has {', '.join(item.fields)}"
        ) from error


def fields_of(form: Form) -> list[str]:
    """The names of the fields in a form.

    Raises:
      BadInput: its braces do not match.
    """
    try:
        return list(
            dict.fromkeys(name for _, name, _, _ in string.Formatter().parse(form.question) if name is not None)
        )
    except ValueError as error:
        raise BadInput(f"the question's form: {error}; double each literal brace") from error


def answer(item: Item, with_text: bool = False) -> str:
    """An item's answer as an example shows it.

    Args:
      item: an item whose answer is text.
      with_text: whether the answer to a choice has the option's text after its letter, as its question does.
    """
    shown = item.target if item.shown is None else item.shown
    if not item.choices or not with_text:
        return shown
    return f"{shown}. {item.choices[string.ascii_uppercase.index(item.target)]}"


def _with_source(item: Item, source: str) -> Item:
    """The item with another source, in each field that holds the source."""
    if source == item.source:
        return item
    fields = {name: source if text == item.source else text for name, text in item.fields.items()}
    return dataclasses.replace(item, source=source, fields=fields)


def _letters(item: Item) -> str:
    return string.ascii_uppercase[: len(item.choices)]


def _redacted(item: Item) -> Item:
    named = {name: f"<{name}>" for name in item.fields}
    return dataclasses.replace(item, fields=named, source="", shown="<answer>")
