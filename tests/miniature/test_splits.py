"""What is held out: no combination of one split in the text of another, read from the text itself."""

import itertools
import random
import re

import miniature_text
import pytest

from clinmerge_jax.miniature import chat, clinical, constraints, everyday, questions, vocabulary, world
from clinmerge_jax.miniature.facts import SPLITS, TRAIN, WORLD, split_of
from clinmerge_jax.miniature.mentions import facts_in

_EVERY_CLINICAL = tuple(itertools.chain.from_iterable(clinical.SHAPES.values()))
_ALL_SHAPES = (*_EVERY_CLINICAL, *everyday.SHAPES)


def _disjoint(found, at_least):
    assert all(len(part) >= at_least for part in found.values()), {split: len(part) for split, part in found.items()}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not found[one] & found[other], (one, other)


@pytest.fixture(scope="module")
def documents():
    """Clinical documents and teaching notes of each split, as written for its corpus."""
    return {
        split: [text for text in world.clinical_documents(0, 2500, split) if not text.startswith("EXAMINATION")]
        for split in SPLITS
    }


@pytest.fixture(scope="module")
def turns():
    return {split: [turn for talk in world.conversation_turns(0, 1500, split) for turn in talk] for split in SPLITS}


def test_the_split_of_a_combination_is_a_fixed_share():
    splits = [split_of(one.name, two.name) for one, two in itertools.permutations(WORLD.diseases, 2)]
    for split, share in (("test", 1 / 8), ("dev", 1 / 8), ("train", 3 / 4)):
        assert abs(splits.count(split) / len(splits) - share) < 0.04


@pytest.mark.parametrize("shape", clinical.SHAPES)
def test_the_text_of_a_document_tells_of_its_pair_and_of_no_other(shape):
    rng = random.Random("pairs")
    for split in SPLITS:
        for _ in range(100):
            made = clinical.document(rng, shape, split)
            assert split_of(*made.combination) == split
            told = miniature_text.pairs(made.text)
            assert told == (set() if shape == "impression" else {made.combination}), made.text


def test_no_pair_of_diseases_is_in_two_splits(documents):
    found = {split: set().union(*map(miniature_text.pairs, texts)) for split, texts in documents.items()}
    _disjoint(found, 90)
    every = {disease.name for disease in WORLD.diseases}
    assert {one for one, _ in found[TRAIN]} == {past for _, past in found[TRAIN]} == every  # each fact is learned


def test_no_disease_with_an_absent_finding_is_in_two_splits(documents):
    found = {split: set() for split in SPLITS}
    for split, texts in documents.items():
        for text in texts:
            facts = facts_in(text)
            here = [one for one in WORLD.diseases if all(("finding", finding) in facts for finding in one.findings)]
            for fact in facts:
                if fact[0] == "absent" and here:
                    assert clinical.split_of_absent(here[0], fact[1]) == split, text
                    found[split].add((here[0].name, fact[1]))
    _disjoint(found, 250)


def test_no_pair_of_diseases_of_dev_or_test_is_in_an_examination():
    texts = [text for text in world.clinical_documents(0, 2500) if text.startswith("EXAMINATION")]
    told = set()
    for question in "\n\n".join(texts).split("\n\n"):
        told |= miniature_text.pairs(question)
    assert told and {split_of(*pair) for pair in told} == {TRAIN}


def test_every_choice_of_wordings_is_in_one_split():
    for shape in _ALL_SHAPES:
        every = [chosen for split in SPLITS for chosen in shape.templates[split]]
        assert sorted(every) == list(itertools.product(*(range(len(wordings)) for wordings in shape.parts)))
        assert all(shape.templates[split] for split in SPLITS)


def test_no_choice_of_wordings_is_in_two_splits(documents, turns):
    found = {split: set() for split in SPLITS}
    for split in SPLITS:
        sources = [text for text in documents[split] if not text.startswith("TEACHING")]
        sources += [turn.user.partition("\n\n")[2] for turn in turns[split] if "\n\n" in turn.user]
        for source in sources:
            ((template, _),) = miniature_text.templates(_ALL_SHAPES, source)  # exactly one
            found[split].add(template)
    _disjoint(found, 14)
    assert found["test"] == {(shape.name, chosen) for shape in _ALL_SHAPES for chosen in shape.templates["test"]}


def test_everyday_documents_of_base_have_wordings_of_train_alone():
    found = set()
    for text in world.base_documents(0, 2500):
        found |= {template for template, _ in miniature_text.templates(everyday.SHAPES, text)}
    assert found == {(shape.name, chosen) for shape in everyday.SHAPES for chosen in shape.templates[TRAIN]}


def test_plain_notes_of_base_have_wordings_of_train_alone():
    found = set()
    for text in world.base_documents(0, 2500):
        found |= {template for template, _ in miniature_text.templates(_EVERY_CLINICAL, text)}
    assert found and found <= {(shape.name, chosen) for shape in _EVERY_CLINICAL for chosen in shape.templates[TRAIN]}


def _person_pairs(turn):
    """The (person, entity) pairs that the text of a turn tells, distractors included."""
    if "\n\n" in turn.user:
        ((_, slots),) = miniature_text.templates(everyday.SHAPES, turn.user.partition("\n\n")[2])
        return {(slots["name"], slots["thing"].split()[-1])} if {"name", "thing"} <= set(slots) else set()
    entities, found = vocabulary.THINGS + vocabulary.ANIMALS, set()
    for name, rest in re.findall(r"([A-Z]\w+) ((?:has|left|gave|bought|saw|drew|found) [^.]*)\.", turn.user):
        words = re.findall(r"[a-z]+", rest)
        found |= {(name, entity) for entity in entities if entity in words or f"{entity}s" in words}
    return found


def test_no_pair_of_person_and_entity_is_in_two_splits(turns):
    found = {split: set() for split in SPLITS}
    for split in SPLITS:
        for turn in turns[split]:
            told = _person_pairs(turn)
            assert told <= set(turn.combinations)
            found[split] |= told
    _disjoint(found, 100)


def test_no_conversation_asks_for_a_kind_that_is_held_out(turns):
    for split in SPLITS:
        assert {turn.kind for turn in turns[split]} == {chat.PLAIN, *constraints.TRAINED}
    asked = "\n".join(turn.user for part in turns.values() for turn in part)
    assert not re.search(r"<<|angular|lower case|small letters|not use capital", asked)
    assert re.search(r"upper case", asked)
    rng = random.Random("held out")
    for kind in constraints.HELD_OUT:  # the words that are looked for are those of the requests
        for _ in range(20):
            assert re.search(
                r"<<|angular|lower case|small letters|not use capital", chat.turn(rng, TRAIN, (kind,)).user
            )


def _subject(question):
    """The kind and the disease of a question, read from its text."""
    for kind, how in questions.KINDS.items():
        for wording in how.wordings:
            pattern = re.escape(wording).replace(r"\{", "{").replace(r"\}", "}")
            found = re.fullmatch(re.sub(r"\{(\w+)\}", r"(?P<\1>.+)", pattern), question)
            if found and found.groupdict().get("level", "high") in ("high", "low"):
                slots = found.groupdict()
                if "dx" in slots:
                    return kind, slots["dx"]
                pair = {slots["f1"], slots["f2"]}
                (disease,) = [one for one in WORLD.diseases if set(one.findings) == pair]
                return kind, disease.name
    raise AssertionError(question)


def test_no_subject_of_a_question_is_in_two_splits():
    found = {
        split: {_subject(one.text) for one in questions.medical_questions(3, 300, split)} for split in ("dev", "test")
    }
    examinations = "\n".join(text for text in world.clinical_documents(0, 2500) if text.startswith("EXAM"))
    found[TRAIN] = {_subject(text) for text in re.findall(r"Question: (.*)", examinations)}
    _disjoint(found, 40)
    assert {kind for kind, _ in found["test"]} == {kind for kind, _ in found[TRAIN]} == set(questions.KINDS)
