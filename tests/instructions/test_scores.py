"""Strict and loose verdicts, and the scores of them."""

import random

import langdetect
import numpy as np
import pytest

from clinmerge_jax.instructions.scores import FOLLOWING, loose, strict, variants
from clinmerge_jax.instructions.target import Instruction, InstructionTarget
from clinmerge_jax.metrics import Output, count_items
from clinmerge_jax.statistics import count_sample

_NO_COMMA = Instruction("punctuation:no_comma", {})
_ENDS = Instruction("startend:end_checker", {"end_phrase": "That is all."})
_BEGINS = Instruction("combination:repeat_prompt", {"prompt_to_repeat": "Name a river."})
_SHORT = Instruction("length_constraints:number_words", {"num_words": 5, "relation": "less than"})


def _asked(*instructions: Instruction) -> InstructionTarget:
    return InstructionTarget("Name a river.", instructions)


def test_variants_leave_out_first_line_last_line_both_and_asterisks():
    assert variants("Sure:\n*a*\nb\nBye") == (
        "Sure:\n*a*\nb\nBye",
        "*a*\nb\nBye",
        "Sure:\n*a*\nb",
        "*a*\nb",
        "Sure:\na\nb\nBye",
        "a\nb\nBye",
        "Sure:\na\nb",
        "a\nb",
    )


def test_one_line_has_no_others_to_leave_out():
    assert variants("*a*") == ("*a*", "", "a")


@pytest.mark.parametrize(
    "response, strictly, loosely",
    [
        ("Rhine. That is all.", (True, True), (True, True)),
        ("Sure, gladly:\nRhine. That is all.", (False, True), (True, True)),
        ("Rhine. That is all.\nBye, now!", (False, False), (True, True)),
        ("Sure, gladly:\nRhine. That is all.\nBye, now!", (False, False), (True, True)),
        ("Rhine. **That is all.**", (True, False), (True, True)),
        ("Sure, gladly:\nRhine. That is all, so far.", (False, False), (False, False)),
        # Each instruction has a variant of its own: no one variant follows both.
        ("That is all.\nRhine, Elbe", (False, False), (True, True)),
    ],
)
def test_verdicts(response, strictly, loosely):
    asked = _asked(_NO_COMMA, _ENDS)
    assert (strict(asked, response), loose(asked, response)) == (strictly, loosely)


@pytest.mark.parametrize("response", ["", " \n\t", "\u00a0"])
def test_an_empty_response_follows_nothing(response):
    asked = _asked(_NO_COMMA, _SHORT)
    assert strict(asked, response) == loose(asked, response) == (False, False)


def test_only_markup_is_a_response_though_not_without_its_asterisks():
    asked = _asked(
        Instruction("keywords:letter_frequency", {"letter": "*", "let_frequency": 1, "let_relation": "less than"})
    )
    assert strict(asked, "**") == loose(asked, "**") == (False,)
    assert strict(_asked(_NO_COMMA), "**") == (True,)


def test_scores_of_prompts_and_of_instructions():
    references = [_asked(_NO_COMMA, _ENDS), _asked(_NO_COMMA), _asked(_NO_COMMA, _BEGINS, _ENDS)]
    outputs = [Output("Rhine. *That is all.*"), Output("a, b"), Output("Name a river.\nRhine")]
    counts = count_items(FOLLOWING.values(), outputs, references)
    scores = {name: float(metric.score(counts[name].sum(axis=0))) for name, metric in FOLLOWING.items()}
    assert scores == pytest.approx(
        {
            "prompt_strict": 0,
            "prompt_loose": 100 / 3,
            "instruction_strict": 100 * 3 / 6,
            "instruction_loose": 100 * 4 / 6,
        }
    )
    assert FOLLOWING["instruction_strict"].of_items(counts["instruction_strict"]) == pytest.approx([50, 0, 200 / 3])


def test_one_reading_of_a_response_serves_all_four_scores(monkeypatch):
    from clinmerge_jax.instructions import checkers

    calls = []
    monkeypatch.setitem(checkers.CHECKERS, "punctuation:no_comma", lambda response: bool(calls.append(response)))
    count_items(FOLLOWING.values(), [Output("Rhine")], [_asked(_NO_COMMA)])
    assert calls == ["Rhine", "Rhine"]  # strictly, and loosely of the one variant that is left


def test_the_counts_can_be_resampled():
    references = [_asked(_NO_COMMA, _ENDS), _asked(_NO_COMMA)]
    metric = FOLLOWING["instruction_strict"]
    counts_IK = count_items([metric], [Output("one, two"), Output("one")], references)[metric.name]
    sample = count_sample(counts_IK[None])
    assert metric.score(sample.counts_SCK.sum(axis=(0, 1))) == pytest.approx(100 / 3)


def test_verdicts_depend_on_the_response_alone():
    """Neither on what was judged before nor on anybody's random numbers, also where the language is a close call."""
    german = Instruction("language:response_language", {"language": "de"})
    asked = _asked(german, Instruction("change_case:english_lowercase", {}))
    rng = np.random.default_rng(0)
    words = "hand arm the und is warm in not so tag day rose gut wind all gold".split()
    responses = [" ".join(rng.choice(words, 4)) for _ in range(30)]
    first = [(strict(asked, text), loose(asked, text)) for text in responses]
    random.seed(5)
    langdetect.detect("Noch ein Satz.")
    second = [(strict(asked, text), loose(asked, text)) for text in reversed(responses)]
    assert first == second[::-1]
    assert {verdicts[0] for verdicts, _ in first} == {True, False}
