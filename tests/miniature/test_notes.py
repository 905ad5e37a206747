"""Clinical notes: every fact of the diagnosis, and unseen held-out combinations."""

import random
import re

from clinmerge_jax.miniature import facts, notes, world


def test_clinical_documents_state_the_facts_of_their_diagnosis():
    by_name = {disease.name: disease for disease in facts.WORLD.diseases}
    rng = random.Random("test")
    shapes = set()
    switched = 0
    for _ in range(400):
        document = notes.clinical_document(rng)
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
        return {notes.clinical_document(rng, held_out).combination for _ in range(3000)}

    train, held_out = pairs(False), pairs(True)
    assert not train & held_out
    assert len(held_out) > 100
    assert {pair[0] for pair in train} == {disease.name for disease in facts.WORLD.diseases}
    assert {pair[1] for pair in train} == {disease.name for disease in facts.WORLD.diseases}
