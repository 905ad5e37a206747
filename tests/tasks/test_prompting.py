"""Prompts of tasks: their words, one BOS, the letters after them, and what does not fit."""

import dataclasses

import numpy as np
import pytest
import support

from clinmerge_jax.checkpoint.tokenizers.tokenizer import load_tokenizer
from clinmerge_jax.errors import BadInput
from clinmerge_jax.metrics import named
from clinmerge_jax.tasks.prompting import Prompter
from clinmerge_jax.tasks.task import Form, Item, Kind, Task

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %} {{ m.role }} {{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %} assistant {% endif %}"
)
WORDS = (*support.WORDS, "A", "B", "Answer", "Read")
TASK = Task("fever", Kind.CHOICE, "", Form("{note} Answer", "Read"), tuple(named("accuracy")), max_new_tokens=4)
ITEM = Item("1", "fever.jsonl:1", {"note": "the patient has a fever"}, "the patient has a fever", "A", ("has", "a"))
SHOT = Item("2", "fever.jsonl:2", {"note": "the patient has cough"}, "the patient has cough", "B", ("has", "a"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompting")
    support.write_tokenizer(folder, WORDS, chat_template=TEMPLATE)
    return load_tokenizer(folder, "config.model")


def _words(tokens):
    return [WORDS[token] for token in tokens]


def _prompter(tokenizer, chat=False, shots=(), most=100, cut=False):
    return Prompter(TASK, tokenizer, chat, shots, most, cut)


def test_raw_prompts_have_instruction_examples_and_question_as_one_text(tokenizer):
    text = _prompter(tokenizer, shots=[SHOT]).text(ITEM)
    assert text == "Read\n\nthe patient has cough Answer B\n\nthe patient has a fever Answer"


def test_in_a_chat_examples_are_earlier_turns_and_the_bos_is_the_templates_own(tokenizer):
    prompt = _prompter(tokenizer, chat=True, shots=[SHOT]).prompt(ITEM)
    words = " ".join(_words(prompt.tokens))
    assert words == (
        "<s> user Read the patient has cough Answer assistant B user the patient has a fever Answer assistant"
    )


def test_the_letters_follow_the_prompt_as_tokens_of_their_own(tokenizer):
    for chat in (False, True):
        prompt = _prompter(tokenizer, chat).prompt(ITEM, letters=True)
        assert [_words(answer) for answer in prompt.answers] == [["A"], ["B"]]


@pytest.mark.parametrize("chat", [False, True])
def test_options_follow_the_prompt_in_words_if_the_form_says_so(tokenizer, chat):
    task = dataclasses.replace(TASK, form=dataclasses.replace(TASK.form, by_words=True))
    item = dataclasses.replace(ITEM, choices=("has a cough", "fever"))
    prompt = Prompter(task, tokenizer, chat, (), 100, False).prompt(item, letters=True)
    assert [_words(answer) for answer in prompt.answers] == [["has", "a", "cough"], ["fever"]]
    with pytest.raises(BadInput, match="its prompt has 10 tokens, and 8 fit"):  # the longest option must fit
        Prompter(task, tokenizer, False, (), 8, False).prompt(item, letters=True)


def test_a_bos_in_the_text_is_not_doubled(tokenizer):
    tokenizer_with_bos = load_tokenizer(tokenizer.name_or_path, "config.model")
    item = Item("3", "x:3", {"note": "<s> <s> the patient"}, "<s> <s> the patient", "A", ("has", "a"))
    task = Task("bare", Kind.GENERATION, "", Form("{note}"), TASK.metrics)
    tokens = Prompter(task, tokenizer_with_bos, False, (), 100, False).prompt(item).tokens
    assert _words(tokens) == ["<s>", "the", "patient"]


def test_a_template_that_stands_in_the_text_already_is_refused_in_a_chat(tokenizer):
    item = Item("3", "x.jsonl:3", {"note": "<s> user the patient"}, "", "A", ("has", "a"))
    with pytest.raises(BadInput, match=r"x.jsonl:3: holds <s>, .* applied twice; .*chat_template to False"):
        _prompter(tokenizer, chat=True).prompt(item)


@pytest.mark.parametrize("chat", [False, True])
def test_special_tokens_are_no_words_of_items_or_examples(tokenizer, chat):
    odd = Item("3", "x.jsonl:3", {"note": "a fever </s> user a cough"}, "", "A", ("has", "a"))
    for item, shots in ((odd, []), (ITEM, [odd])):
        with pytest.raises(BadInput, match="x.jsonl:3: holds </s>, a special token.*; remove it"):
            _prompter(tokenizer, chat, shots).prompt(item)


def test_a_prompt_that_is_too_long_is_refused_by_name(tokenizer):
    with pytest.raises(BadInput, match=r"fever.jsonl:1: its prompt has 7 tokens, and 6 fit .*too_long=cut") as refused:
        _prompter(tokenizer, most=6).prompt(ITEM)
    assert "patient" not in str(refused.value)


def test_what_is_to_be_read_is_cut_from_its_end_on_request_and_counted(tokenizer):
    prompter = _prompter(tokenizer, most=6, cut=True)
    prompt = prompter.prompt(ITEM)
    assert _words(prompt.tokens) == ["Read", "the", "patient", "has", "a", "Answer"] and prompt.cut
    assert not _prompter(tokenizer, cut=True).prompt(ITEM).cut
    with_letters = prompter.prompt(ITEM, letters=True)
    assert len(with_letters.tokens) + 1 == 6
    with pytest.raises(BadInput, match="shorten it, or give fewer shots"):
        _prompter(tokenizer, most=2, cut=True).prompt(ITEM)


def test_an_item_without_a_field_of_the_form_is_refused(tokenizer):
    with pytest.raises(BadInput, match="x:4: lacks a field of the question, which names note; it has text"):
        _prompter(tokenizer).prompt(Item("4", "x:4", {"text": "a"}, "a", "A", ("has", "a")))


def test_the_form_can_be_shown_without_its_words(tokenizer):
    shown = _prompter(tokenizer, shots=[SHOT]).redacted(ITEM)
    assert shown == "Read\n\n<note> Answer <answer>\n\n<note> Answer"


def test_later_turns_follow_the_answers_so_far(tokenizer):
    task = Task("turns", Kind.GENERATION, "", Form("{note}"), TASK.metrics)
    item = Item("5", "x:5", {"note": "the patient"}, "the patient", "", turns=("has a cough", "a fever"))
    prompter = Prompter(task, tokenizer, True, (), 100, False)
    assert np.array_equal(prompter.follow_up(item, []), prompter.prompt(item).tokens)
    assert " ".join(_words(prompter.follow_up(item, ["has"]))) == (
        "<s> user the patient assistant has user has a cough assistant"
    )
