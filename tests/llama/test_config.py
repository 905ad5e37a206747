"""LlamaConfig.from_json: both spellings of config.json, the defaults, and what it refuses."""

import json

import pytest
import transformers

from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.config import LlamaConfig, RopeConfig

MINIMAL = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
SCALINGS = {
    "default": {},
    "linear": {"factor": 2.5},
    "dynamic": {"factor": 4.0},
    "llama3": LLAMA3,
}


def read(**fields) -> LlamaConfig:
    return LlamaConfig.from_json({**MINIMAL, **fields}, "config.json")


@pytest.mark.parametrize("rope_type", SCALINGS)
@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_both_spellings_of_rope_give_the_same_configuration(rope_type, key):
    scaling = SCALINGS[rope_type]
    new = read(rope_parameters={"rope_type": rope_type, "rope_theta": 500000.0, **scaling})
    old = read(rope_theta=500000.0, rope_scaling={key: rope_type, **scaling})
    assert new == old and hash(new) == hash(old)
    assert new.rope == RopeConfig(rope_type=rope_type, theta=500000.0, **scaling)


def test_a_null_rope_scaling_is_the_default_rope():
    assert read(rope_theta=777, rope_scaling=None).rope == RopeConfig(theta=777.0)
    assert read(rope_parameters={"rope_type": "default", "rope_theta": 777.0}) == read(rope_theta=777)


@pytest.mark.parametrize("rope_type", SCALINGS)
def test_a_configuration_that_transformers_writes_is_read_field_by_field(rope_type):
    stated = {
        "vocab_size": 321,
        "hidden_size": 30,
        "intermediate_size": 44,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 10,
        "rms_norm_eps": 3e-5,
        "max_position_embeddings": 16384,
        "tie_word_embeddings": True,
        "attention_bias": True,
        "mlp_bias": True,
        "initializer_range": 0.07,
    }
    rope = {"rope_type": rope_type, "rope_theta": 1234.5, **SCALINGS[rope_type]}
    written = transformers.LlamaConfig(**stated, rope_parameters=rope).to_json_string(use_diff=False)
    config = LlamaConfig.from_json(json.loads(written), "config.json")
    assert config == LlamaConfig(**stated, rope=RopeConfig(rope_type, 1234.5, **SCALINGS[rope_type]))


def test_defaults_are_those_of_transformers():
    config, theirs = read(), transformers.LlamaConfig(**MINIMAL)
    for field in (
        "num_key_value_heads",
        "head_dim",
        "rms_norm_eps",
        "max_position_embeddings",
        "tie_word_embeddings",
        "attention_bias",
        "mlp_bias",
        "initializer_range",
    ):
        assert getattr(config, field) == getattr(theirs, field), field
    assert config.rope == RopeConfig(theta=theirs.rope_parameters["rope_theta"])
    assert config.num_key_value_heads == 6 and config.head_dim == 4


def test_a_null_field_counts_as_absent():
    nulls = dict.fromkeys(("num_key_value_heads", "head_dim", "rms_norm_eps", "partial_rotary_factor"))
    assert read(**nulls) == read()
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": None}
    assert read(rope_parameters=rope) == read()


def test_fields_that_do_not_bear_on_the_forward_pass_are_ignored():
    assert read(use_cache=False, pretraining_tp=2, torch_dtype="bfloat16", architectures=["X"]) == read()


def test_whole_floats_are_integers_and_integers_are_floats():
    assert read(vocab_size=100.0, rope_theta=10000) == read()


def test_head_dim_need_not_be_the_quotient():
    assert read(hidden_size=25, head_dim=8).head_dim == 8


def test_llama3_without_an_original_length_takes_the_maximal_one():
    scaling = {key: value for key, value in LLAMA3.items() if key != "original_max_position_embeddings"}
    rope = read(max_position_embeddings=333, rope_scaling={"rope_type": "llama3", **scaling}).rope
    assert rope.original_max_position_embeddings == 333


def test_equal_rope_parameters_and_rope_scaling_may_stand_together():
    new = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}
    config = read(rope_parameters=new, rope_scaling={"type": "linear", "factor": 2.0})
    assert config == read(rope_parameters=new)


REFUSED = [
    ("model_type", {"model_type": "mistral"}),
    ("model_type", {"model_type": None}),
    ("hidden_act", {"hidden_act": "gelu"}),
    ("head_dim", {"head_dim": 5}),
    ("head_dim", {"hidden_size": 18}),
    ("hidden_size", {"hidden_size": 25}),
    ("hidden_size", {"hidden_size": 0}),
    ("num_key_value_heads", {"num_key_value_heads": 4}),
    ("num_key_value_heads", {"num_key_value_heads": 12}),
    ("vocab_size", {"vocab_size": None}),
    ("vocab_size", {"vocab_size": True}),
    ("vocab_size", {"vocab_size": "100"}),
    ("vocab_size", {"vocab_size": 99.5}),
    ("vocab_size", {"vocab_size": float("inf")}),
    ("vocab_size", {"vocab_size": float("nan")}),
    ("intermediate_size", {"intermediate_size": -4}),
    ("num_hidden_layers", {"num_hidden_layers": [2]}),
    ("num_attention_heads", {"num_attention_heads": None}),
    ("max_position_embeddings", {"max_position_embeddings": "2048"}),
    ("rms_norm_eps", {"rms_norm_eps": "1e-5"}),
    ("rms_norm_eps", {"rms_norm_eps": True}),
    ("rms_norm_eps", {"rms_norm_eps": float("nan")}),
    ("rms_norm_eps", {"rms_norm_eps": 0}),
    ("tie_word_embeddings", {"tie_word_embeddings": "false"}),
    ("tie_word_embeddings", {"tie_word_embeddings": 1}),
    ("attention_bias", {"attention_bias": 0}),
    ("mlp_bias", {"mlp_bias": "yes"}),
    ("rope_theta", {"rope_theta": "10000"}),
    ("rope_theta", {"rope_parameters": {"rope_type": "default", "rope_theta": True}}),
    ("rope_scaling.rope_type", {"rope_scaling": {"type": "yarn", "factor": 2.0}}),
    ("rope_parameters.rope_type", {"rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0}}),
    ("rope_scaling", {"rope_scaling": "linear"}),
    ("rope_parameters", {"rope_parameters": ["linear"]}),
    ("factor", {"rope_scaling": {"type": "linear"}}),
    ("factor", {"rope_scaling": {"type": "dynamic", "factor": "2"}}),
    ("head_dim", {"hidden_size": 12, "rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    ("low_freq_factor", {"rope_scaling": {**LLAMA3, "rope_type": "llama3", "low_freq_factor": None}}),
    ("high_freq_factor", {"rope_scaling": {**LLAMA3, "rope_type": "llama3", "high_freq_factor": False}}),
    (
        "original_max_position_embeddings",
        {"rope_scaling": {**LLAMA3, "rope_type": "llama3", "original_max_position_embeddings": 0.5}},
    ),
    ("partial_rotary_factor", {"partial_rotary_factor": 0.5}),
    ("partial_rotary_factor", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}}),
    (
        "rope_scaling",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0}, "rope_scaling": {"type": "linear", "factor": 4.0}},
    ),
    (
        "rope_scaling",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0}, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
    ),
    (
        "rope_scaling",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0}, "rope_scaling": "linear"},
    ),
    ("rope_theta", {"rope_theta": 5.0, "rope_parameters": {"rope_type": "default", "rope_theta": 6.0}}),
    (
        "rope_scaling.high_freq_factor",
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}},
    ),
]


def test_llama3_takes_its_first_context_from_the_top_level_then_from_its_own_field_then_the_whole_context():
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    own = {**scaling, "original_max_position_embeddings": 64}

    def original(**fields):
        raw = {**MINIMAL, "max_position_embeddings": 512, **fields}
        return LlamaConfig.from_json(raw, "config.json").rope.original_max_position_embeddings

    assert original(rope_scaling=own, original_max_position_embeddings=32) == 32
    assert original(rope_scaling=own) == 64
    assert original(rope_scaling=scaling) == 512


@pytest.mark.parametrize(("field", "changes"), REFUSED)
def test_refusal_is_one_line_that_names_the_file_and_the_field(field, changes):
    with pytest.raises(BadInput) as caught:
        LlamaConfig.from_json({**MINIMAL, **changes}, "some/config.json")
    message = str(caught.value)
    assert message.startswith(f"some/config.json: {field} ") and "\n" not in message


@pytest.mark.parametrize("field", MINIMAL)
def test_a_missing_size_is_named(field):
    raw = {key: value for key, value in MINIMAL.items() if key != field}
    with pytest.raises(BadInput, match=f"^config.json: {field} "):
        LlamaConfig.from_json(raw, "config.json")
