"""The figures of groups of tensors."""

import numpy as np
import pytest
from families import BASE, CLINICAL, INSTRUCT, cosine, inspected, opened, reference

from clinmerge_jax.merging.inspection.measures import PARENTS, combine, group, in_display_order


def test_groups_are_the_tensors_laid_end_to_end(tmp_path):
    inspections = inspected(opened(tmp_path, clinical=CLINICAL, instruct=INSTRUCT, base=BASE))
    by_module = group(in_display_order(inspections), lambda one: one.module)
    layers = ["q", "k", "v", "o", "gate", "up", "down", "norms"]
    assert list(by_module) == [*layers, "embed_tokens", "norm", "lm_head"]
    names = [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(2)]
    x, y, o = (np.concatenate([t[n].ravel() for n in names]).astype(np.float64) for t in (CLINICAL, INSTRUCT, BASE))
    found = by_module["q"]
    assert found.tensors == 2 and found.entries == x.size
    pair = found.pairs[PARENTS]
    assert (pair.relative_distance, pair.cosine) == pytest.approx(reference(x, y, 5.0)[:2])
    assert found.change_cosine == pytest.approx(cosine(x - o, y - o))
    tops = [np.sort(((CLINICAL[n] - INSTRUCT[n]).astype(np.float64) ** 2).ravel())[::-1] for n in names]
    held = sum(float(squares[: round(squares.size * 0.05)].sum()) for squares in tops)
    assert pair.top_share == pytest.approx(held / sum(float(squares.sum()) for squares in tops), rel=1e-6)
    assert set(group(inspections, lambda one: one.layer)) == {None, 0, 1}
    assert combine(by_module.values()).entries == sum(values.size for values in BASE.values())
