"""Schedules over depth and module, and recipes that make sense."""

import pytest

from clinmerge_jax.errors import BadInput
from clinmerge_jax.merging.recipes.recipe import Recipe, Source, VocabularyChoice, two_parents
from clinmerge_jax.merging.recipes.schedule import Schedule, layer_of
from configs import merge as merge_config

LAYER = "model.layers.{}.self_attn.q_proj.weight"


def _at(text, name, layers=5):
    return Schedule.parse(text, "config.t").at(name, layers)


@pytest.mark.parametrize("value", [0.3, "0.3", " .3 ", (0.3,), [0.3]])
def test_a_constant_holds_everywhere(value):
    assert _at(value, "lm_head.weight") == _at(value, LAYER.format(4)) == 0.3


def test_a_gradient_is_linear_over_depth_and_starts_outside_the_layers():
    values = [_at("0,1", LAYER.format(layer)) for layer in range(5)]
    assert values == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert _at("0.2,1", "model.embed_tokens.weight") == _at("0.2,1", "model.norm.weight") == 0.2


def test_the_first_filter_that_is_part_of_the_name_wins():
    text = "self_attn=1; q_proj=2; 3"
    assert _at(text, LAYER.format(0)) == 1
    assert _at(text, "model.layers.0.mlp.up_proj.weight") == 3


def test_the_published_biomistral_schedule():
    schedule = Schedule.parse(merge_config.BIOMISTRAL, "config.t")
    attention = [schedule.at(LAYER.format(layer), 32) for layer in (0, 31)]
    mlp = [schedule.at(f"model.layers.{layer}.mlp.up_proj.weight", 32) for layer in (0, 31)]
    assert (attention, mlp) == ([0.0, 1.0], [1.0, 0.0])
    assert schedule.at(LAYER.format(8), 33) == 0.5 and schedule.at(LAYER.format(16), 33) == pytest.approx(0.3)
    assert schedule.at("model.layers.3.input_layernorm.weight", 32) == schedule.at("lm_head.weight", 32) == 0.5


def test_a_single_layer_takes_the_last_value():
    assert _at("0.1,0.9", LAYER.format(0), layers=1) == 0.9


@pytest.mark.parametrize("text", ["", "abc", "0,,1", "=1", "a=1; a=2", "nan", "inf", None, True, [], ["x"]])
def test_malformed_schedules_are_refused_by_field(text):
    with pytest.raises(BadInput, match="config.t"):
        Schedule.parse(text, "config.t")


def test_a_filter_without_fallback_is_refused_where_it_is_needed():
    with pytest.raises(BadInput, match="no filter matches tensor lm_head.weight"):
        _at("self_attn=1", "lm_head.weight")


def test_a_filter_that_fits_nothing_is_refused():
    with pytest.raises(BadInput, match="'attn_self' matches no tensor"):
        Schedule.parse("attn_self=1; 0.5", "config.t").check_filters(["model.layers.0.self_attn.q_proj.weight"])


def test_a_filter_hidden_by_an_earlier_one_is_refused():
    names = ["model.layers.0.mlp.up_proj.weight", "lm_head.weight"]
    with pytest.raises(BadInput, match="'up_proj' is hidden by an earlier one"):
        Schedule.parse("mlp=1; up_proj=0; 0.5", "config.t").check_filters(names)
    Schedule.parse("up_proj=0; lm_head=1; 0.5", "config.t").check_filters(names)


def test_a_clause_after_the_value_for_every_tensor_is_refused():
    with pytest.raises(BadInput, match="comes after a value that matches every tensor"):
        Schedule.parse("0.5; self_attn=0,1", "config.t")


def test_the_text_of_a_schedule_keeps_every_digit():
    assert str(Schedule.parse(0.123456789, "t")) == "0.123456789" != str(Schedule.parse(0.12345679, "t"))


def test_a_schedule_reads_its_own_text():
    for text in (merge_config.BIOMISTRAL, "0.5", "0,0.25,1", "mlp=1; 0.5"):
        schedule = Schedule.parse(text, "config.t")
        assert Schedule.parse(str(schedule), "config.t") == schedule


def test_linear_interpolation_weights_add_up_to_one_everywhere():
    recipe = two_parents("linear", "a", "b", "mlp=0,1; 0.3")
    for name in ("model.layers.1.mlp.up_proj.weight", "lm_head.weight"):
        _, (instruct, clinical) = recipe.values(recipe.parts[0], name, [name, name], 0.5)
        assert instruct["weight"] + clinical["weight"] == 1.0


@pytest.mark.parametrize(
    "build",
    [
        lambda: two_parents("nope", "a", "b", 0.5),
        lambda: two_parents("linear", "a", "b", 0.5, dtype="int8"),
        lambda: Recipe("slerp", (Source("a"), Source("b"))),
        lambda: Recipe("slerp", (Source("a"),) * 3, {"t": Schedule.parse(0.5, "t")}),
        lambda: Recipe("linear", (Source("a"), Source("b"))),
        lambda: Recipe(
            "slerp", (Source("a"), Source("b")), {"t": Schedule.parse(0.5, "t"), "weight": Schedule.parse(1, "w")}
        ),
    ],
    ids=[
        "unknown method",
        "unknown dtype",
        "slerp without t",
        "slerp of three",
        "linear without weights",
        "foreign parameter",
    ],
)
def test_recipes_that_make_no_sense_are_refused(build):
    with pytest.raises(BadInput):
        build()


def test_layers_are_read_from_tensor_names():
    assert layer_of("model.layers.17.mlp.up_proj.weight") == 17
    assert layer_of("layers.3.attention.wq.weight") == 3
    assert layer_of("model.embed_tokens.weight") is None


def test_extrapolation_is_said(caplog):
    two_parents("linear", "a", "b", "0,1")
    assert not caplog.records
    two_parents("linear", "a", "b", "0.5,1.5")
    assert "1.5 is outside 0..1" in caplog.text


def test_the_bases_tokenizer_is_refused_where_the_base_is_not_used():
    for method in ("linear", "slerp"):
        with pytest.raises(BadInput, match=f"^config.tokenizer: {method} does not use the base"):
            two_parents(method, "a", "b", 0.5, base="c", vocabulary=VocabularyChoice(source="base"))
    two_parents("task_arithmetic", "a", "b", 0.5, base="c", vocabulary=VocabularyChoice(source="base"))


def test_a_parameter_that_a_method_lacks_is_refused_with_the_fields_that_it_has():
    with pytest.raises(BadInput, match="^config.tol: task_arithmetic has no such parameter; it has .*lambda_"):
        two_parents("task_arithmetic", "a", "b", 0.5, base="c", parameters={"tol": 1.0})
