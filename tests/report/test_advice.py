"""The rules of thumb, and the numbers behind them."""

import numpy as np
import pytest
from families import BASE, CLINICAL, INSTRUCT, UNRELATED, changed, inspected, opened

from clinmerge_jax.merging.inspection.lineage import lineage
from clinmerge_jax.merging.inspection.measures import FROM_BASE, PARENTS, combine
from clinmerge_jax.report.advice import advice, normal_top_share


def rules(folder, top=5.0, **models):
    inspections = inspected(opened(folder, **models), top)
    return "\n".join(advice(lineage(inspections), combine(one.measures for one in inspections), top))


def test_the_advice_follows_the_numbers(tmp_path):
    close = changed(BASE, 2, 0.001)
    text = rules(tmp_path / "close", clinical=close, instruct=changed(BASE, 1, 0.001), base=BASE)
    assert "slerp and linear give the same result: 21 of 21 tensors" in text
    assert "without much interference" in text and "as chance would have it" in text
    assert "a normal distribution: 27.9%" in text
    both = changed(INSTRUCT, 3, 0.05)
    text = rules(tmp_path / "shared", clinical=both, instruct=INSTRUCT, base=BASE)
    assert "would count what is shared twice" in text and "few conflicts" in text
    opposed = {name: 2 * BASE[name] - values for name, values in INSTRUCT.items()}
    text = rules(tmp_path / "opposed", clinical=opposed, instruct=INSTRUCT, base=BASE)
    assert "oppose each other" in text and "fewer than chance" in text
    sparse = {name: values.copy() for name, values in BASE.items()}
    for values in sparse.values():
        values.ravel()[::40] += 1
    text = rules(tmp_path / "sparse", clinical=sparse, instruct=BASE)
    assert "keep most: the top 5 % of entries hold 100.0%" in text and "none was given" in text
    assert "nothing to merge" in rules(tmp_path / "equal", clinical=BASE, instruct=BASE)
    assert rules(tmp_path / "strangers", clinical=UNRELATED, instruct=BASE).startswith("Do not expect a merge to work")


def test_a_change_that_did_not_happen_has_no_direction(tmp_path):
    inspections = inspected(opened(tmp_path, clinical=CLINICAL, instruct=BASE, base=BASE))
    for one in inspections:
        assert one.measures.change_cosine is None and one.measures.sign_agreement is None
    found = lineage(inspections)
    assert "has not changed from the base" in found.text()
    assert advice(found, combine(one.measures for one in inspections), 5.0)


def test_a_base_that_is_no_ancestor_is_not_counted_from(tmp_path):
    inspections = inspected(opened(tmp_path, clinical=CLINICAL, instruct=INSTRUCT, base=UNRELATED))
    found = lineage(inspections)
    assert found.nearer is None and found.verdict(PARENTS) == "one family"
    assert [found.verdict(pair) for pair in FROM_BASE] == ["unrelated"] * 2
    assert any("no ancestor" in line for line in advice(found, combine(x.measures for x in inspections), 5.0))


def test_the_share_of_a_normal_distribution_is_that_of_drawn_entries():
    squares = np.sort(np.random.default_rng(0).normal(size=1_000_000) ** 2)[::-1]
    for top in (1.0, 20.0):
        expected = float(squares[: round(1e4 * top)].sum() / squares.sum())
        assert normal_top_share(top) == pytest.approx(expected, rel=0.01)
    assert normal_top_share(100.0) == 1.0


def test_parents_that_changed_other_entries_have_no_conflicts_of_sign(tmp_path):
    def only(layer, models):
        return {name: models[name] if f"layers.{layer}." in name else values for name, values in BASE.items()}

    text = rules(tmp_path, clinical=only(0, CLINICAL), instruct=only(1, INSTRUCT), base=BASE)
    assert "no conflicts of sign to settle: both parents changed no entry in common" in text
    assert "the two changes have cosine 0.0000" in text


def test_a_base_whose_descent_is_doubtful_is_called_so(tmp_path):
    base = changed({name: 0.3 * values for name, values in BASE.items()}, 5, 1.0)
    text = rules(tmp_path, clinical=CLINICAL, instruct=INSTRUCT, base=base)
    assert "from a base that is perhaps no ancestor" in text


def test_a_concentrated_change_speaks_for_trimming_and_not_for_dropping_the_largest(tmp_path):
    sparse = {name: values.copy() for name, values in BASE.items()}
    for values in sparse.values():
        values.ravel()[::40] += 1
    text = rules(tmp_path / "sparse", clinical=sparse, instruct=BASE)
    assert "ties at a density of 0.05" in text and "breadcrumbs" not in text
    text = rules(tmp_path / "dense", clinical=CLINICAL, instruct=BASE)
    assert "ties and breadcrumbs need a higher density than 0.05" in text
    assert rules(tmp_path / "smallest", 1e-15, clinical=CLINICAL, instruct=BASE)  # at least one entry
    assert normal_top_share(1e-15) == pytest.approx(0.0, abs=1e-14)
