"""The verdict on whose children models are."""

import numpy as np
import pytest
from families import BASE, CLINICAL, INSTRUCT, UNRELATED, changed, inspected, opened

from clinmerge_jax.merging.lineage import lineage
from clinmerge_jax.merging.measures import PARENTS


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
