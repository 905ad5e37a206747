"""The tables and pictures of an inspection."""

import numpy as np
import pytest
from families import BASE, CLINICAL, INSTRUCT, inspected, opened

from clinmerge_jax.merging.inspection.measures import FROM_BASE, PARENTS
from clinmerge_jax.report.inspection import change_table, distance_table, figures_by_layer, figures_by_module, heat_maps


@pytest.mark.parametrize("with_base", [False, True])
def test_every_figure_stands_in_the_cell_of_its_module_and_layer(tmp_path, with_base):
    models = {"clinical": CLINICAL, "instruct": INSTRUCT} | ({"base": BASE} if with_base else {})
    inspections = inspected(opened(tmp_path, **models))
    pictures = heat_maps(inspections, 5.0)
    figures = {
        "relative_distance.png": [
            lambda one, pair=pair: one.pairs[pair].relative_distance for pair in [PARENTS, *FROM_BASE]
        ],
        "sign_agreement.png": [lambda one: one.sign_agreement],
        "top_share.png": [
            lambda one, pair=pair: one.pairs[pair].top_share for pair in (FROM_BASE if with_base else [PARENTS])
        ],
        "change_cosine.png": [lambda one: one.change_cosine],
        "weight_angle.png": [lambda one: one.pairs[PARENTS].degrees],
    }
    assert set(pictures) == set(figures) - {"weight_angle.png" if with_base else "change_cosine.png"}
    for name, picture in pictures.items():
        assert picture.rows == ["q", "k", "v", "o", "gate", "up", "down", "norms"] and picture.layers == [0, 1]
        assert picture.outside == ["embeddings", "final norm", "head"]
        for panel, figure in zip(picture.panels, figures[name]):
            for row, module in enumerate(picture.rows[:-1]):
                for layer in picture.layers:
                    (one,) = [one for one in inspections if (one.module, one.layer) == (module, layer)]
                    assert panel.values_RL[row, layer] == figure(one.measures)
            outside = {one.module: figure(one.measures) for one in inspections if one.layer is None}
            np.testing.assert_array_equal(
                panel.outside_M, [outside[name] for name in ("embed_tokens", "norm", "lm_head")]
            )


def test_tables_have_a_row_for_each_group_and_one_for_what_lies_outside(tmp_path):
    inspections = inspected(opened(tmp_path, clinical=CLINICAL, instruct=INSTRUCT, base=BASE))
    modules, layers = figures_by_module(inspections), figures_by_layer(inspections)
    assert list(modules)[-1] == "all" and modules["all"].tensors == len(inspections)
    assert list(layers) == [0, 1, None]
    for text in (distance_table("layer", layers), change_table("layer", layers, 5.0)):
        assert [line.split("|")[1].strip() for line in text.splitlines()[2:]] == ["0", "1", "outside"]
    (row,) = [line for line in distance_table("module", modules).splitlines() if line.startswith("| q ")]
    parents = modules["q"].pairs[PARENTS]
    assert f" {parents.relative_distance:.4f} | {parents.cosine:.6f} |" in row
