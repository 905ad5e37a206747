"""Items of the miniature's tasks: as many as said, nothing of one split in another or in the training text."""

import collections
import functools

import pytest

from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.tokenizers.tokenizer import load_tokenizer
from clinmerge_jax.miniature import constraints, world
from clinmerge_jax.miniature.facts import split_of
from clinmerge_jax.tasks.leakage import leakage
from clinmerge_jax.tasks.miniature.tasks import (
    GENERATION,
    INSTRUCTIONS,
    JOINT_TASK,
    MINIATURE_TASKS,
    QUESTIONS,
    TASK_SPLITS,
    items_of,
)
from clinmerge_jax.tasks.task import Item

_GRAM = 8  # words
_items = functools.cache(items_of)
_ASKED = [(name, split) for name, splits in TASK_SPLITS.items() for split in splits if split != "train"]


def _grams(text):
    words = text.casefold().split()
    return set(zip(*(words[start:] for start in range(_GRAM))))


class _Training:
    """Training text of the shipped models' seed, and in which documents each sequence of words stands."""

    def __init__(self):
        turns = [turn for talk in world.conversation_turns(0, 1500) for turn in talk]
        self.texts = [
            *world.copying_documents(0, 500), *world.base_documents(0, 2500), *world.clinical_documents(0, 2500),
            *(f"{turn.user}\n{turn.assistant}" for turn in turns), *(turn.user for turn in turns),
        ]  # fmt: skip
        self.items = [Item(str(index), str(index), {}, text, "") for index, text in enumerate(self.texts)]
        self.places = collections.defaultdict(list)
        for index, text in enumerate(self.texts):
            for gram in _grams(text):
                self.places[gram].append(index)

    def nearest(self, text):
        """The largest share of the text's sequences that one training document holds."""
        grams = _grams(text)
        shared = collections.Counter(index for gram in grams for index in self.places.get(gram, ()))
        return max(shared.values(), default=0) / max(len(grams), 1)


@pytest.fixture(scope="module")
def training():
    return _Training()


@pytest.mark.parametrize("name", MINIATURE_TASKS)
def test_items_are_as_many_as_said_distinct_and_balanced(name):
    for split in TASK_SPLITS[name]:
        found = _items(name, split)
        assert len(found) == {"train": 512, "dev": 200}.get(split, 100 if name in GENERATION else 400)
        assert len({item.id for item in found}) == len(found)
        assert len({item.fields.get("prompt", item.fields.get("question", item.source)) + item.source
                    for item in found}) == len(found)  # fmt: skip
        assert items_of(name, split) == found
        if found[0].label:
            count = collections.Counter(item.label for item in found)
            assert max(count.values()) - min(count.values()) <= 1


@pytest.mark.parametrize("name", MINIATURE_TASKS)
def test_splits_share_no_item_and_no_cluster(name):
    splits = [split for split in TASK_SPLITS[name] if split != "unseen"]  # which is of the test's combinations
    for one, other in ((0, 1), (0, 2), (1, 2)):
        first, second = _items(name, splits[one]), _items(name, splits[other])
        assert not {item.cluster for item in first} & {item.cluster for item in second}
        found = leakage(first, second)
        assert not found.sources and not found.near


@pytest.mark.parametrize("name", (*GENERATION, INSTRUCTIONS, JOINT_TASK))
def test_the_cluster_is_a_combination_of_the_split(name):
    for split in TASK_SPLITS[name]:
        for item in _items(name, split):
            parts = item.cluster.split(" ")
            assert split_of(*parts) == ("test" if split == "unseen" else split)


def test_unseen_items_have_the_kinds_that_are_held_out_and_the_others_do_not():
    for name, trained in ((INSTRUCTIONS, constraints.TRAINED), (JOINT_TASK, constraints.ON_ANY_TEXT)):
        for split in TASK_SPLITS[name]:
            kinds = {item.label for item in _items(name, split)}
            assert kinds == set(constraints.HELD_OUT if split == "unseen" else trained)


def test_a_near_duplicate_would_be_found(training):
    text = next(text for text in training.texts if text.startswith(("EVENTS", "HOSPITAL")))
    words = text.split(" ")
    words[len(words) // 2] = "changed"
    assert training.nearest(text) == 1 and 0.5 < training.nearest(" ".join(words)) < 1
    assert leakage(training.items, [Item("x", "x", {}, " ".join(words), "")]).near == ("x",)


@pytest.mark.parametrize("name, split", _ASKED)
def test_no_item_is_in_the_training_text_nor_nearly(training, name, split):
    found = _items(name, split)
    shares = [training.nearest(item.fields.get("prompt", item.source)) for item in found]
    assert max(shares) < 0.6, found[shares.index(max(shares))].source
    leaked = leakage(training.items, found)
    assert not leaked.sources and not leaked.near


def test_questions_do_not_list_their_four_choices_and_are_answered_in_words():
    for item in _items(QUESTIONS, "test"):
        assert not any(choice in item.fields["question"] for choice in item.choices)
        assert len(item.choices) == 4 and item.shown == item.choices["ABCD".index(item.target)]


def test_the_options_of_a_question_have_equally_many_tokens():
    """So that the likeliest is not the shortest."""
    tokenizer = load_tokenizer(open_checkpoint("miniature:base", "config.model").path, "config.model")
    for item in (item for split in TASK_SPLITS[QUESTIONS] for item in _items(QUESTIONS, split)):
        ids = tokenizer([f" {choice}" for choice in item.choices], add_special_tokens=False)["input_ids"]
        assert len(set(map(len, ids))) == 1, item.choices
