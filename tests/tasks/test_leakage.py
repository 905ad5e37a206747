"""Test items that occur in the training set."""

import time

import pytest

from clinmerge_jax.data.sets.files import Source
from clinmerge_jax.tasks.items import items
from clinmerge_jax.tasks.leakage import leakage
from clinmerge_jax.tasks.task import Item

WORDS = [f"word{number}" for number in range(40)]


def _item(key, source, target="none", **more):
    return Item(id=key, name=key, fields={"text": source}, source=source, target=target, **more)


def test_case_and_white_space_do_not_hide_a_source_or_a_target():
    train = [_item("a", "Dry  cough.\n", "Tea and rest")]
    test = [_item("x", "dry cough.", "other"), _item("y", "wet cough.", " tea AND rest"), _item("z", "new", "newer")]
    found = leakage(train, test)
    assert (found.sources, found.near, found.targets) == (("x",), (), ("y",))
    assert found.counts() == {"sources": 1, "near": 0, "targets": 1}


def test_half_of_the_sequences_make_a_near_duplicate():
    train = [_item("a", " ".join(WORDS))]
    half = " ".join(WORDS[:26] + ["other"] * 14)  # 14 of 28 sequences of 13 words
    less = " ".join(WORDS[:25] + ["other"] * 15)
    assert leakage(train, [_item("x", half), _item("y", less), _item("z", "short")]).near == ("x",)


def test_letters_are_not_compared_and_worked_answers_stand_for_numbers():
    choices = ("yes", "no")
    train = [_item("a", "1", "A", choices=choices), _item("b", "2", "4", shown="2 + 2 = 4")]
    test = [_item("x", "3", "A", choices=choices), _item("y", "5", "4", shown="3 + 1 = 4"), _item("z", "6", {"k": 1})]
    assert leakage(train, test).targets == ()


def test_mts_dialog_leaks_what_is_known_of_it(shared, tmp_path):
    if not (shared / "data/mts_dialog").is_dir():
        pytest.skip("the shared data lacks data/mts_dialog")
    source = Source(str(shared / "data"), str(tmp_path))
    train = items("mts_dialog", "train", source)
    tests = {split: items("mts_dialog", split, source) for split in ("valid", "test1", "test2")}
    start = time.process_time()
    found = {split: leakage(train, test) for split, test in tests.items()}
    assert time.process_time() - start < 3
    assert {split: len(one.targets) for split, one in found.items()} == {"valid": 16, "test1": 29, "test2": 22}
    assert {split: len(one.sources) for split, one in found.items()} == {"valid": 2, "test1": 1, "test2": 2}
    targets = {item.target for item in train}
    identical = {split: sum(item.target in targets for item in test) for split, test in tests.items()}
    assert identical == {"valid": 15, "test1": 29, "test2": 22}
