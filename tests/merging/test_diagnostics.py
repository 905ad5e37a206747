"""The per-module table of what differs between the parents."""

import pytest

from clinmerge_jax.merging.diagnostics import TensorDifference, by_module, module_of
from clinmerge_jax.merging.methods import PairTotals


def test_modules_are_named_without_their_layer():
    assert module_of("model.layers.12.self_attn.q_proj.weight") == "self_attn.q_proj"
    assert module_of("model.layers.0.self_attn.q_proj.bias") == "self_attn.q_proj.bias"
    assert module_of("model.layers.3.input_layernorm.weight") == "input_layernorm"
    assert module_of("model.norm.weight") == "norm"
    assert module_of("lm_head.weight") == "lm_head"


def test_a_module_sums_its_tensors_and_the_last_row_sums_all():
    rows = by_module(
        [
            TensorDifference("model.layers.0.mlp.up_proj.weight", 4, PairTotals(1.0, 1.0, 0.02), (0.5, 0.5)),
            TensorDifference("model.layers.1.mlp.up_proj.weight", 4, PairTotals(3.0, 3.0, 0.0), (0.5, 0.5)),
            TensorDifference("lm_head.weight", 2, PairTotals(4.0, 4.0, 8.0), (0.5, 0.5)),
        ]
    )
    up, head, everything = rows
    assert (up.module, up.tensors, up.size, up.collinear) == ("mlp.up_proj", 2, 8, 1)
    assert up.relative_distance == pytest.approx((0.02 / 4) ** 0.5)
    assert (up.cosine, up.lowest_cosine) == (pytest.approx(1 - 0.01 / 4), pytest.approx(0.99))
    assert (head.cosine, head.collinear) == (0.0, 0)
    assert (everything.module, everything.tensors, everything.collinear) == ("all", 3, 1)


def test_records_survive_json():
    difference = TensorDifference("lm_head.weight", 2, PairTotals(4.0, 4.0, 8.0), (0.25, 0.75))
    assert TensorDifference.from_json(difference.to_json()) == difference
