"""The verdict on whose children models are."""

import numpy as np
import pytest
from families import BASE, CLINICAL, INSTRUCT, UNRELATED, changed, inspected, opened

from clinmerge_jax.merging.inspection.lineage import lineage
from clinmerge_jax.merging.inspection.measures import PARENTS


def test_siblings_are_told_from_strangers(tmp_path):
    siblings = lineage(inspected(opened(tmp_path / "siblings", clinical=CLINICAL, instruct=INSTRUCT)))
    strangers = lineage(inspected(opened(tmp_path / "strangers", clinical=UNRELATED, instruct=INSTRUCT)))
    between = changed({name: 0.3 * values for name, values in BASE.items()}, 5, 1.0)
    doubtful = lineage(inspected(opened(tmp_path / "doubtful", clinical=between, instruct=BASE)))
    verdicts = [found.verdict(PARENTS) for found in (siblings, strangers, doubtful)]
    assert verdicts == ["one family", "unrelated", "doubtful"]
    assert siblings.medians[PARENTS] > 0.9 and siblings.matrices.pairs[PARENTS].z > 50
    assert abs(strangers.matrices.pairs[PARENTS].z) < 4
    assert "of one family" in siblings.text() and "config.base" in siblings.text()
    assert "meaningless" in strangers.text() and "meaningless" not in siblings.text()
    assert "doubtful" in doubtful.text()


def test_norms_do_not_make_strangers_siblings(tmp_path):
    near_one = {name: np.ones_like(v) for name, v in BASE.items() if v.ndim == 1}
    models = opened(tmp_path, clinical={**UNRELATED, **near_one}, instruct={**INSTRUCT, **near_one})
    assert lineage(inspected(models)).verdict(PARENTS) == "unrelated"


@pytest.mark.parametrize(
    "clinical, nearer, carried",
    [(changed(BASE, 2, 0.3), "base", 0.0), (changed(INSTRUCT, 2, 0.1), "instruct", 1.0), (BASE, "base", None)],
)
def test_what_clinical_was_trained_from_shows(tmp_path, clinical, nearer, carried):
    found = lineage(inspected(opened(tmp_path, clinical=clinical, instruct=INSTRUCT, base=BASE)))
    assert found.nearer == nearer
    assert found.matrices.carried == (None if carried is None else pytest.approx(carried, abs=0.1))
    assert f"nearer to {nearer}" in found.text()


def test_an_equal_distance_is_called_so(tmp_path):
    halfway = {name: (BASE[name] + values) / 2 for name, values in INSTRUCT.items()}
    found = lineage(inspected(opened(tmp_path, clinical=halfway, instruct=INSTRUCT, base=BASE)))
    assert found.nearer == "neither" and "about as far" in found.text()


def test_distances_are_compared_in_one_unit(tmp_path):
    instruct = changed({name: 1.5 * values for name, values in BASE.items()}, 1, 0.01)
    clinical = changed({name: 1.22 * values for name, values in BASE.items()}, 2, 0.01)
    found = lineage(inspected(opened(tmp_path, clinical=clinical, instruct=instruct, base=BASE)))
    to_instruct, to_base, _ = (found.matrices.pairs[pair].relative_distance for pair in found.medians)
    assert to_instruct < 0.19 < 0.21 < to_base  # each in the norm of its own other model
    assert found.nearer == "base" and "(from base 0.22" in found.text() and "from instruct 0.28" in found.text()


def test_what_clinical_carries_tells_what_it_was_trained_from_where_the_distances_do_not(tmp_path):
    far = changed(INSTRUCT, 5, 1.0)
    found = lineage(inspected(opened(tmp_path / "far", clinical=far, instruct=INSTRUCT, base=BASE)))
    assert found.nearer == "neither" and found.matrices.carried == pytest.approx(1.0, abs=0.1)
    assert "as if it had been trained from instruct" in found.text()
    partly = {name: 0.6 * BASE[name] + 0.4 * values for name, values in INSTRUCT.items()}
    found = lineage(inspected(opened(tmp_path / "partly", clinical=partly, instruct=INSTRUCT, base=BASE)))
    assert found.nearer == "base" and found.matrices.carried == pytest.approx(0.4, abs=0.01)
    assert "does not show what it was trained from" in found.text() and "not from instruct" not in found.text()
    found = lineage(inspected(opened(tmp_path / "apart", clinical=CLINICAL, instruct=INSTRUCT, base=BASE)))
    assert "as if it had been trained from the base and not from instruct" in found.text()
