"""The three corpora: stable text, decided by the seed, and no invented word outside clinical text."""

import hashlib
import json

import pytest

from clinmerge_jax.miniature import facts, world

# Changing the generated text changes every corpus and every model trained on it: do it knowingly.
SAMPLE_SHA256 = "5ed22d7c8527084869eab089b3091b11f94fdcc17e66add06c23d24e4c6d2a41"


def test_text_is_pinned():
    parts = [
        world.base_documents(1, 20),
        world.clinical_documents(1, 20),
        world.clinical_documents(1, 20, held_out=True),
        world.conversations(1, 20),
        world.conversations(1, 20, held_out=True),
    ]
    assert hashlib.sha256(json.dumps(parts).encode()).hexdigest() == SAMPLE_SHA256


@pytest.mark.parametrize("corpus", [world.base_documents, world.clinical_documents, world.conversations])
def test_seed_decides_the_text(corpus):
    assert corpus(3, 30) == corpus(3, 30)
    assert corpus(3, 60)[:30] == corpus(3, 30)
    texts = [json.dumps(document) for document in corpus(3, 200)]
    others = [json.dumps(document) for document in corpus(4, 200)]
    assert not set(texts) & set(others)


def test_no_invented_word_outside_clinical_text():
    words = facts.WORLD.invented_words()
    texts = world.base_documents(7, 1500) + [json.dumps(c) for c in world.conversations(7, 800)]
    everything = "\n".join(texts).lower()
    assert not [word for word in words if word in everything]
    clinical = "\n".join(world.clinical_documents(7, 1500)).lower()
    for disease in facts.WORLD.diseases:
        assert disease.name in clinical and disease.drug in clinical


def test_conversations_alternate_roles_and_match_their_turns():
    talks = world.conversations(2, 50)
    for talk, turns in zip(talks, world.conversation_turns(2, 50), strict=True):
        assert [message["role"] for message in talk] == ["user", "assistant"] * len(turns)
        assert [m["content"] for m in talk[::2]] == [turn.user for turn in turns]


def test_documents_are_short():
    talks = ["\n".join(m["content"] for m in talk) for talk in world.conversations(9, 1000)]
    for text in world.base_documents(9, 1000) + world.clinical_documents(9, 1000) + talks:
        assert 5 <= len(text.split()) <= 350
        assert "{" not in text.replace('{"', "")  # an unfilled slot
