"""LlamaConfig.from_json: both spellings of config.json, the defaults, and what it refuses."""

import json

import pytest
import transformers

from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.config import FAMILIES, LlamaConfig, RopeConfig
from clinmerge_jax.llama.parameters import parameters

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
    ("model_type", {"model_type": "gemma2"}),
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


def test_the_families_defaults_are_those_of_transformers():
    sizes = {key: value for key, value in MINIMAL.items() if key != "model_type"} | {"num_attention_heads": 32}
    sizes |= {"hidden_size": 64}
    known = {"llama": transformers.LlamaConfig, "mistral": transformers.MistralConfig}
    known |= {"qwen2": transformers.Qwen2Config, "qwen3": transformers.Qwen3Config}
    assert set(known) == set(FAMILIES)
    for name, theirs in known.items():
        stated = theirs(**sizes)
        ours = LlamaConfig.from_json({**sizes, "model_type": name}, "config.json")
        assert ours.num_key_value_heads == stated.num_key_value_heads, name
        assert ours.head_dim == (getattr(stated, "head_dim", None) or 2), name
        assert ours.rms_norm_eps == stated.rms_norm_eps, name
        window = stated.sliding_window if name == "mistral" else stated.max_position_embeddings
        assert ours.max_position_embeddings == min(window, stated.max_position_embeddings), name
        assert ours.tie_word_embeddings is stated.tie_word_embeddings, name


def test_families_differ_in_biases_and_norms():
    def names(**fields):
        config = read(hidden_size=48, **{"num_key_value_heads": 2, "head_dim": 8, **fields})
        return {row.name.removeprefix("model.layers.{layer}.self_attn.") for row in parameters(config)}

    biases = {f"{one}_proj.bias" for one in "qkv"}
    assert names(model_type="mistral") == names()
    assert names(model_type="qwen2") == names() | biases
    assert names(model_type="qwen3") == names() | {"q_norm.weight", "k_norm.weight"}
    assert names(model_type="llama", attention_bias=True) == names() | biases | {"o_proj.bias"}


@pytest.mark.parametrize(
    "fields, context",
    [
        ({"model_type": "mistral", "sliding_window": None}, 512),
        ({"model_type": "mistral", "sliding_window": 64}, 64),
        ({"model_type": "mistral", "sliding_window": 4096}, 512),
        ({"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": False}, 512),
        ({"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": True}, 64),
        ({"model_type": "llama", "sliding_window": 64}, 512),
    ],
)
def test_no_run_leaves_a_sliding_window(fields, context):
    config = read(max_position_embeddings=512, num_key_value_heads=2, **fields)
    assert config.max_position_embeddings == context


def test_a_window_with_dynamic_rope_is_refused():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    with pytest.raises(BadInput, match="sliding_window comes with dynamic"):
        read(model_type="mistral", num_key_value_heads=2, sliding_window=64, rope_parameters=rope)


@pytest.mark.parametrize("model_type", ["gemma2", "mixtral", "qwen2_moe", None, ["llama"]])
def test_other_families_are_refused_by_name(model_type):
    with pytest.raises(BadInput, match="model_type is .*llama, mistral, qwen2, qwen3"):
        read(model_type=model_type)
