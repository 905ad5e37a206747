"""The corpora: stable text, decided by the seed, and no invented fact outside clinical text."""

import collections
import hashlib
import itertools
import json
import re

import pytest

from clinmerge_jax.miniature import everyday, world
from clinmerge_jax.miniature.facts import SPLITS, WORLD
from clinmerge_jax.miniature.mentions import facts_in

# Changing the generated text changes every corpus and every model trained on it: do it knowingly.
SAMPLE_SHA256 = "85b5a5b606874508324494d60ebbb9d4b2ea297370899db739e602fa1d74fdb3"
_WORD = re.compile(r"\b(" + "|".join(WORLD.invented_words()) + r")\b", re.IGNORECASE)


_KINDS = {
    **{disease.name: "disease" for disease in WORLD.diseases},
    **{drug: "drug" for drug in WORLD.drugs},
    **{finding.split()[0]: "finding" for finding in WORLD.findings},
    **{test.name.split()[1]: "test" for test in WORLD.tests},
}


def _related():
    """Every pair of invented words that a row of the fact table connects."""
    found = set()
    for disease in WORLD.diseases:
        signs = [finding.split()[0] for finding in disease.findings]
        others = [disease.drug, disease.second_drug, disease.forbids, disease.test.name.split()[1]]
        found |= {frozenset(pair) for pair in itertools.combinations([disease.name, *signs, *others], 2)}
    return found


def _kinds(pair):
    return tuple(sorted(_KINDS[word] for word in pair))


def test_text_is_pinned():
    parts = [
        world.copying_documents(1, 20),
        world.base_documents(1, 20),
        *(world.clinical_documents(1, 20, split) for split in SPLITS),
        *(world.conversations(1, 20, split) for split in SPLITS),
    ]
    assert hashlib.sha256(json.dumps(parts).encode()).hexdigest() == SAMPLE_SHA256


@pytest.mark.parametrize(
    "corpus", [world.copying_documents, world.base_documents, world.clinical_documents, world.conversations]
)
def test_the_seed_decides_the_text(corpus):
    assert corpus(3, 30) == corpus(3, 30)
    assert corpus(3, 60)[:30] == corpus(3, 30)
    texts = [json.dumps(document) for document in corpus(3, 200)]
    others = [json.dumps(document) for document in corpus(4, 200)]
    assert not set(texts) & set(others)


@pytest.mark.parametrize("corpus", [world.clinical_documents, world.conversations])
def test_splits_are_different_text(corpus):
    one, two, three = ({json.dumps(document) for document in corpus(3, 200, split)} for split in SPLITS)
    assert not one & two and not one & three and not two & three


def test_conversations_hold_no_invented_word():
    for split in SPLITS:
        assert not _WORD.findall(json.dumps(world.conversations(7, 800, split)))


def test_everyday_documents_and_questions_of_base_hold_no_invented_word_and_notes_teach_none():
    texts = world.base_documents(7, 2500)
    headings = re.compile(r"^(Question|" + "|".join(shape.heading.strip(":") for shape in everyday.SHAPES) + "):", re.M)
    formed = [text for text in texts if headings.search(text)]
    assert len(formed) > 500 and not [text for text in formed if _WORD.search(text)]
    assert not [text for text in texts if text.startswith(("TEACHING", "EXAMINATION"))]
    assert sum(bool(_WORD.search(text)) for text in texts) > 200  # the base model learns to spell them


@pytest.mark.parametrize("corpus", [world.base_documents, world.copying_documents])
def test_text_before_clinical_training_connects_words_no_more_than_chance_does(corpus):
    """Of two invented words in one text, a row of the fact table connects as many as of two that are drawn."""
    related = _related()
    drawn = collections.Counter(_kinds(pair) for pair in itertools.combinations(WORLD.invented_words(), 2))
    chance = {kinds: count / drawn[kinds] for kinds, count in collections.Counter(map(_kinds, related)).items()}
    connected, expected = 0, 0.0
    for text in corpus(7, 3000):
        words = sorted(set(map(str.lower, _WORD.findall(text))))
        for pair in itertools.combinations(words, 2):
            connected += frozenset(pair) in related
            expected += chance.get(_kinds(pair), 0)
    assert expected > 500
    assert abs(connected / expected - 1) < 5 / expected**0.5


def test_the_search_for_connections_finds_those_of_clinical_text():
    related = _related()
    found = [
        frozenset(pair) in related
        for text in world.clinical_documents(7, 200)
        for pair in itertools.combinations(sorted(set(map(str.lower, _WORD.findall(text)))), 2)
    ]
    assert sum(found) / len(found) > 0.2


def test_clinical_text_states_every_fact_of_the_table():
    stated = set()
    for text in world.clinical_documents(7, 3000):
        facts = facts_in(text)
        named = {fact[1] for fact in facts}
        stated |= {
            (disease.name, name)
            for disease in WORLD.diseases
            if ("disease", disease.name) in facts
            for name in (*disease.findings, disease.drug, disease.test.name)
            if name in named
        }
        stated |= {
            (disease.name, disease.forbids)
            for disease in WORLD.diseases
            if {("past", disease.name), ("avoided", disease.forbids)} <= facts
        }
    for disease in WORLD.diseases:
        due = (*disease.findings, disease.drug, disease.test.name, disease.forbids)
        assert {(disease.name, name) for name in due} <= stated


def test_conversations_alternate_roles_and_match_their_turns():
    talks = world.conversations(2, 50)
    for talk, turns in zip(talks, world.conversation_turns(2, 50), strict=True):
        assert [message["role"] for message in talk] == ["user", "assistant"] * len(turns)
        assert [m["content"] for m in talk[::2]] == [turn.user for turn in turns]
        assert [m["content"] for m in talk[1::2]] == [turn.assistant for turn in turns]


def test_documents_are_short_and_no_slot_is_left_unfilled():
    talks = ["\n".join(m["content"] for m in talk) for talk in world.conversations(9, 1000)]
    for text in (
        world.copying_documents(9, 100) + world.base_documents(9, 1000) + world.clinical_documents(9, 1000) + talks
    ):
        assert 5 <= len(text.split()) <= 350
        assert "{" not in text.replace('{"', "")
