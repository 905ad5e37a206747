"""Which pairs of models can be merged."""

import json

import pytest
from support import WORDS, write_llama, write_tokenizer

from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.errors import BadInput
from clinmerge_jax.merging.compatibility import check_compatible
from clinmerge_jax.merging.plan import plan_merge
from clinmerge_jax.merging.recipes.recipe import Recipe, Source
from clinmerge_jax.merging.recipes.schedule import Schedule


def _pair(tmp_path, words=WORDS, **overrides):
    write_tokenizer(write_llama(tmp_path / "one", 0))
    write_tokenizer(write_llama(tmp_path / "two", 1, **overrides), words)
    return [open_checkpoint(str(tmp_path / name), f"config.{name}") for name in ("one", "two")]


def _special(tmp_path, name, token, index):
    path = tmp_path / name / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"].append({"id": index, "content": token})
    path.write_text(json.dumps(content))


def test_siblings_are_compatible(tmp_path):
    check_compatible(*_pair(tmp_path))


def test_the_warning_names_the_model_whose_field_the_result_takes(tmp_path, caplog):
    models = _pair(tmp_path, rope_theta=5e5)
    recipe = Recipe(
        "linear",
        (Source("one"), Source("two")),
        {"weight": Schedule.parse("1", "weight")},
        leading="two",
    )
    plan = plan_merge(recipe, models)
    assert "differ in rope_theta; the result takes config.two's" in caplog.text
    assert plan.config["rope_theta"] == 5e5


def test_fields_that_one_config_leaves_to_the_default_are_no_difference(tmp_path):
    check_compatible(*_pair(tmp_path, hidden_act=None, rope_theta=None))


@pytest.mark.parametrize("field, value", [("num_attention_heads", 2), ("num_key_value_heads", 4), ("model_type", "x")])
def test_another_architecture_of_the_same_shapes_is_refused(tmp_path, field, value):
    one, two = _pair(tmp_path)
    changed = open_checkpoint(str(tmp_path / "two"), "config.two")
    changed.config[field] = value
    with pytest.raises(BadInput, match=f"config.two: {field} is"):
        check_compatible(one, changed)


def test_a_token_at_another_id_is_refused(tmp_path):
    words = ["patient" if word == "the" else "the" if word == "patient" else word for word in WORDS]
    with pytest.raises(BadInput, match="config.two: token 'the' has id 4"):
        check_compatible(*_pair(tmp_path, words))


def test_another_word_at_the_same_id_is_refused(tmp_path):
    words = ["headache" if word == "fever" else word for word in WORDS]
    with pytest.raises(BadInput, match="config.two: id 7 is 'headache'"):
        check_compatible(*_pair(tmp_path, words))


def test_a_reserved_token_put_to_use_is_accepted(tmp_path):
    sources = _pair(tmp_path)
    _special(tmp_path, "one", "<|reserved_0|>", 15)
    _special(tmp_path, "two", "<|pad|>", 15)
    check_compatible(*sources)
