"""The invented facts: complete, without contradictions, and no name a part of another."""

from clinmerge_jax.miniature import facts

WORLD = facts.WORLD


def test_the_fact_table_is_complete_and_has_no_contradiction():
    diseases = WORLD.diseases
    assert len({disease.name for disease in diseases}) == len(diseases) == facts.SIZES.diseases
    assert len({frozenset(disease.findings) for disease in diseases}) == len(diseases)
    assert {finding for disease in diseases for finding in disease.findings} == set(WORLD.findings)
    for column in ("drug", "second_drug", "forbids"):  # so that each drug answers one question of a kind
        assert {getattr(disease, column) for disease in diseases} == set(WORLD.drugs)
    for disease in diseases:
        assert len({disease.drug, disease.second_drug, disease.forbids}) == 3
        assert disease.test in WORLD.tests and 0 < disease.test.low < disease.test.high
        assert len(set(disease.findings)) == 2


def test_a_second_drug_is_never_the_one_that_is_forbidden():
    for disease in WORLD.diseases:
        for past in WORLD.diseases:
            if past.forbids == disease.drug:
                assert past != disease and past.forbids != disease.second_drug


def test_no_invented_word_is_part_of_another():
    words = WORLD.invented_words()
    assert len(words) == len(set(words)) == 120
    assert not [(a, b) for a in words for b in words if a != b and a in b]
