"""The invented facts: complete, and no name a part of another."""

from clinmerge_jax.miniature import facts


def test_fact_table_is_consistent():
    diseases = facts.WORLD.diseases
    assert len(diseases) == facts.SIZES.diseases
    assert len({disease.name for disease in diseases}) == len(diseases)
    assert len({frozenset(disease.findings) for disease in diseases}) == len(diseases)
    assert {disease.drug for disease in diseases} == set(facts.WORLD.drugs)
    for disease in diseases:
        assert len({disease.drug, disease.second_drug, disease.forbids}) == 3
    words = facts.WORLD.invented_words()
    assert len(words) == 152
    assert not [(a, b) for a in words for b in words if a != b and a in b]
