"""The development set: whether it is solvable, balanced, the same everywhere, and not IFEval's."""

import collections
import hashlib
import re

import pytest

from clinmerge_jax.instructions.checkers import CHECKERS
from clinmerge_jax.instructions.scores import strict
from clinmerge_jax.instructions.target import Instruction, InstructionTarget
from clinmerge_jax.tasks.instructions import topics
from clinmerge_jax.tasks.instructions.compliant import NOTHING, obey
from clinmerge_jax.tasks.instructions.data import read_prompts
from clinmerge_jax.tasks.instructions.development import development_items
from clinmerge_jax.tasks.instructions.kinds import compatible

# The three answers that one of IFEval's kinds allows have to be quoted.
_SHARED_WORDS = {"my", "answer", "is", "yes", "no", "maybe"}


@pytest.fixture(scope="module")
def development():
    return development_items()


def _grams(text, length=6):
    found = re.findall(r"\w+", text.lower())
    return {tuple(found[start : start + length]) for start in range(len(found) - length + 1)}


@pytest.mark.parametrize(("seed", "digest"), [(0, "398c6c4cfa939820"), (1, "5c15f39cff13267c")])
def test_a_seed_gives_the_same_items_everywhere(seed, digest):
    items = development_items(seed, 100)
    text = "\n".join(repr((item.id, item.target.prompt, item.target.instructions)) for item in items)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == digest


def test_a_longer_set_begins_with_the_shorter_one(development):
    assert development_items(count=30) == development[:30]


def test_every_item_is_solved_by_rules_and_not_by_an_answer_that_ignores_it(development):
    for item in development:
        assert all(strict(item.target, obey(NOTHING, item.target))), item.id
        assert not all(strict(item.target, NOTHING)), item.id


def test_every_kind_of_ifeval_is_asked_for_with_up_to_two_others(development):
    kinds = collections.Counter(instruction.id for item in development for instruction in item.target.instructions)
    assert set(kinds) == set(CHECKERS) and min(kinds.values()) >= 12
    sizes = collections.Counter(len(item.target.instructions) for item in development)
    assert set(sizes) == {1, 2, 3} and min(sizes.values()) >= 30


def test_prompts_are_all_different(development):
    assert len({item.target.prompt for item in development}) == len(development)


def test_a_repeated_request_is_the_first_line_and_no_instruction(development):
    for item in development:
        for instruction in item.target.instructions:
            if instruction.id == "combination:repeat_prompt":
                assert item.target.prompt.split("\n")[0] == instruction.kwargs["prompt_to_repeat"]


@pytest.mark.parametrize(
    "ids",
    [
        ["punctuation:no_comma", "punctuation:no_comma"],
        ["change_case:english_capital", "change_case:english_lowercase"],
        ["detectable_format:json_format", "detectable_format:title"],
        ["detectable_format:number_bullet_lists", "length_constraints:number_paragraphs"],
        ["detectable_format:constrained_response", "punctuation:no_comma"],
    ],
)
def test_instructions_that_contradict_each_other_do_not_go_together(ids):
    assert not compatible(ids)


def test_an_unknown_instruction_has_no_answer():
    with pytest.raises(KeyError, match="no:such"):
        obey(NOTHING, InstructionTarget("", (Instruction("no:such", {}),)))


def test_wording_and_content_are_not_those_of_ifeval(development, shared):
    prompts = [item.source for item in read_prompts(str(shared / "data/ifeval/input_data.jsonl"), "data_dir")]
    theirs = set().union(*map(_grams, prompts))
    for item in development:
        assert all(set(gram) <= _SHARED_WORDS for gram in _grams(item.target.prompt) & theirs), item.id
    vocabulary = {word for prompt in prompts for word in re.findall(r"\w+", prompt.lower())}
    vocabulary |= {f"{word}s" for word in vocabulary}
    for words in (topics.THINGS, topics.ANIMALS, topics.PLACES, topics.PASTIMES, topics.DISHES, topics.TRADES):
        assert not vocabulary & set(words)
    assert not vocabulary & set(topics.WORDS)
