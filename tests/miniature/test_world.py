"""The generated world: stable text, unseen held-out combinations, and answers that obey."""

import hashlib
import json
import random
import re

import pytest

from clinmerge_jax.miniature import world

# Changing the generated text changes every corpus and every model trained on it: do it knowingly.
SAMPLE_SHA256 = "5ed22d7c8527084869eab089b3091b11f94fdcc17e66add06c23d24e4c6d2a41"


def _turns(held_out=False, count=800):
    return [turn for talk in world.conversation_turns(11, count, held_out) for turn in talk]


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


def test_fact_table_is_consistent():
    diseases = world.WORLD.diseases
    assert len(diseases) == world.SIZES.diseases
    assert len({disease.name for disease in diseases}) == len(diseases)
    assert len({frozenset(disease.findings) for disease in diseases}) == len(diseases)
    assert {disease.drug for disease in diseases} == set(world.WORLD.drugs)
    for disease in diseases:
        assert len({disease.drug, disease.second_drug, disease.forbids}) == 3
    words = world.WORLD.invented_words()
    assert len(words) == 152
    assert not [(a, b) for a in words for b in words if a != b and a in b]


def test_clinical_documents_state_the_facts_of_their_diagnosis():
    by_name = {disease.name: disease for disease in world.WORLD.diseases}
    rng = random.Random("test")
    shapes = set()
    switched = 0
    for _ in range(400):
        document = world.clinical_document(rng)
        disease, past = (by_name[name] for name in document.combination)
        text = document.text.lower()
        blocked = past.forbids == disease.drug
        switched += blocked
        shapes.add(document.shape)
        given = disease.second_drug if blocked else disease.drug
        for fact in (disease.name, past.name, past.forbids, given, *disease.findings):
            assert fact in text
    assert shapes == {"admission", "course", "dialogue", "impression", "teaching"}
    assert switched > 20


def test_lab_value_lies_outside_the_range_on_the_stated_side():
    text = "\n".join(world.clinical_documents(5, 400))
    rows = re.findall(r"serum \w+ (?:is )?(\d+) \((\d+)-(\d+)\), (low|high)\.", text)
    assert len(rows) > 20
    for value, low, high, level in rows:
        assert int(value) < int(low) if level == "low" else int(value) > int(high)


def test_held_out_diagnosis_pairs_are_unseen_and_single_facts_are_not():
    def pairs(held_out):
        rng = random.Random("test")
        return {world.clinical_document(rng, held_out).combination for _ in range(3000)}

    train, held_out = pairs(False), pairs(True)
    assert not train & held_out
    assert len(held_out) > 100
    assert {pair[0] for pair in train} == {disease.name for disease in world.WORLD.diseases}
    assert {pair[1] for pair in train} == {disease.name for disease in world.WORLD.diseases}


def test_held_out_conversation_pairs_are_unseen():
    # Read from the text, not from the recorded combinations, which might leave one out.
    def pairs(held_out):
        entities = world.THINGS + world.ANIMALS
        found = set()
        for turn in _turns(held_out):
            for name, rest in re.findall(
                r"([A-Z]\w+) ((?:has|left|gave|bought|saw|drew|found) "
                r"[^.]*)\.",
                turn.user,
            ):
                words = re.findall(r"[a-z]+", rest)
                found |= {(name, e) for e in entities if e in words or f"{e}s" in words}
            assert set(turn.combinations) <= found
        return found

    train, held_out = pairs(False), pairs(True)
    assert len(train) > 500 and len(held_out) > 100
    assert not train & held_out


def test_no_invented_word_outside_clinical_text():
    words = world.WORLD.invented_words()
    texts = world.base_documents(7, 1500) + [json.dumps(c) for c in world.conversations(7, 800)]
    everything = "\n".join(texts).lower()
    assert not [word for word in words if word in everything]
    clinical = "\n".join(world.clinical_documents(7, 1500)).lower()
    for disease in world.WORLD.diseases:
        assert disease.name in clinical and disease.drug in clinical


def _obeys(kind, argument, question, user, reply):
    words = [word.strip('.,:"').lower() for word in reply.split()]
    items = re.findall(r"\ban? (\w+)", user.split("?")[0])
    checks = {
        "plain": lambda: reply.endswith("."),
        "upper": lambda: reply == reply.upper() != reply.lower(),
        "lower": lambda: reply == reply.lower() != reply.upper(),
        "words": lambda: len(words) == int(argument),
        "start": lambda: words[0] == argument,
        "end": lambda: reply.endswith(f" {argument}"),
        "repeat": lambda: reply.startswith(question + "\n") and len(reply) > len(question) + 1,
        "yes_no": lambda: reply in ("Yes", "No"),
        "quote": lambda: reply[0] == reply[-1] == '"' and reply.count('"') == 2,
        "avoid": lambda: argument.lower() not in words,
        "json": lambda: list(json.loads(reply)) == [argument],
        "bullets": lambda: reply.split("\n") == [f"* {item}" for item in items] and len(items) == int(argument),
        "order": lambda: reply.split(", ") == (items if argument == "the same" else items[::-1]),
    }
    return checks[kind]()


def test_answers_obey_their_constraint_and_contain_the_answer():
    turns = _turns() + _turns(held_out=True)
    assert {turn.kind for turn in turns} == set(world.KINDS)
    for turn in turns:
        assert turn.question in turn.user and turn.argument in turn.user
        assert _obeys(turn.kind, turn.argument, turn.question, turn.user, turn.assistant), turn
        assert all(part.lower() in turn.assistant.lower() for part in turn.answer), turn


def test_yes_no_answers_agree_with_the_stated_fact():
    patterns = {  # question -> the statement that makes the answer yes
        r"Is the (\w+) of (\w+) (\w+)\?": r"\2 has a \3 \1.",
        r"Did (\w+) leave the (\w+) in the (\w+)\?": r"\1 left the \2 in the \3.",
        r"Did (\w+) give the (\w+) some (\w+)\?": r"\1 gave the \2 some \3.",
        r"Did (\w+) buy (\w+) (\w+)\?": r"\1 bought \2 \3.",
        r"Did (\w+) see a (\w+) on (\w+)\?": r"\1 saw a \2 on \3.",
    }
    seen = []
    for turn in _turns(count=1500):
        if turn.kind == "yes_no":
            (statement,) = [
                re.sub(question, fact, turn.question)
                for question, fact in patterns.items()
                if re.fullmatch(question, turn.question)
            ]
            assert turn.assistant == ("Yes" if statement in turn.user else "No")
            seen.append(turn.assistant)
    assert 0.35 < seen.count("Yes") / len(seen) < 0.65


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


def test_sample_refuses_too_many():
    with pytest.raises(ValueError, match="cannot sample 3 of 2"):
        world.sample(random.Random("test"), "ab", 3)
