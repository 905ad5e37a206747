"""Few-shot subsets: nested, independent of order, balanced."""

import collections
import random

import pytest

from clinmerge_jax.data.documents import Document
from clinmerge_jax.data.few_shot import choose, divide
from clinmerge_jax.errors import BadInput


def _documents(counts, seed=0):
    documents = [
        Document(f"{label}:{i}", text=f"note {i} of {label}", label=label)
        for label in counts
        for i in range(counts[label])
    ]
    random.Random(seed).shuffle(documents)
    return documents


def _ids(documents):
    return [document.id for document in documents]


@pytest.mark.parametrize("labels", [(None,), ("a", "b", "c")], ids=["no classes", "three classes"])
def test_smaller_subsets_are_the_start_of_larger_ones_whatever_the_order_of_the_file(labels):
    counts = dict.fromkeys(labels, 60)
    largest = _ids(choose(_documents(counts), 0, seed=5))
    assert sorted(largest) == sorted(_ids(_documents(counts)))
    for shots in (1, 2, 16, 32, 60):
        assert _ids(choose(_documents(counts, seed=shots), shots, seed=5)) == largest[:shots]


def test_the_choice_of_a_seed_never_changes():
    texts = [document.text for document in choose(_documents({None: 50}), 4, seed=1)]
    assert texts == ["note 22 of None", "note 7 of None", "note 12 of None", "note 14 of None"]


def test_seeds_choose_independently():
    documents = _documents({None: 200})
    shared = [
        len(set(_ids(choose(documents, 50, 0))) & set(_ids(choose(documents, 50, seed)))) for seed in range(1, 21)
    ]
    assert 9 < sum(shared) / len(shared) < 16  # 12.5 expected, with a standard deviation of the mean of 0.6


def test_classes_take_turns_until_they_are_used_up():
    counts = {"common": 100, "rare": 3, "seen": 20}
    for shots in range(1, 124):
        chosen = collections.Counter(document.label for document in choose(_documents(counts), shots, seed=2))
        unfinished = [chosen[label] for label in counts if chosen[label] < counts[label]]
        assert max(unfinished, default=0) - min(unfinished, default=0) <= 1
        assert all(chosen[label] >= min(counts[label], shots // 3) for label in counts)


def test_the_class_that_comes_first_depends_on_the_seed():
    first = {choose(_documents({"a": 5, "b": 5}), 1, seed)[0].label for seed in range(10)}
    assert first == {"a", "b"}


@pytest.mark.parametrize("shots", [-1, 68, 128])
def test_more_shots_than_documents_are_refused_with_the_count(shots):
    with pytest.raises(
        BadInput, match=f"config.shots: {shots} of 67 documents cannot be chosen; give a number from 1 to 67"
    ):
        choose(_documents({None: 67}), shots, seed=0)


def test_sets_give_shots_by_their_shares_and_fewer_shots_never_more_of_one():
    assert divide(64, [100, 100], [0, 0]) == [32, 32]
    assert divide(64, [100, 100, 100], [2, 1, 1]) == [32, 16, 16]
    before = [0, 0, 0]
    for shots in range(1, 60):
        given = divide(shots, [100, 100, 100], [5, 3, 1.5])
        assert sum(given) == shots and all(one >= other for one, other in zip(given, before))
        before = given


def test_without_shots_sets_give_all_they_have_or_as_much_as_shares_allow():
    assert divide(0, [70, 40], [0, 0]) == [70, 40]
    assert divide(0, [70, 40], [1, 1]) == [40, 40]
    assert divide(0, [70, 40], [3, 1]) == [70, 23]


def test_a_set_with_fewer_examples_than_its_share_is_refused():
    with pytest.raises(BadInput, match="config.shots: 64 take 32 from set 2 of config.task, which has 20"):
        divide(64, [100, 20], [0, 0])
