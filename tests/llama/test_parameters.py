"""The parameter table against the model, against transformers, and on the published sizes."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from support import LLAMA_3_1_8B, LLAMA_3_1_70B

from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.model import abstract_block, forward
from clinmerge_jax.llama.parameters import (
    abstract_params,
    build_params,
    count_parameters,
    init_params,
    iterate_params,
    parameters,
)

# All sizes differ, so that a transposed or exchanged axis cannot go unnoticed.
BASE = LlamaConfig(
    vocab_size=53,
    hidden_size=12,
    intermediate_size=22,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    rms_norm_eps=1e-5,
    max_position_embeddings=64,
)
PUBLISHED_SIZES = {"8B": (LLAMA_3_1_8B, 8_030_261_248), "70B": (LLAMA_3_1_70B, 70_553_706_496)}
VARIANTS = [
    dataclasses.replace(BASE, tie_word_embeddings=tied, attention_bias=attention_bias, mlp_bias=mlp_bias)
    for tied, attention_bias, mlp_bias in itertools.product((False, True), repeat=3)
]


@pytest.fixture(params=VARIANTS, ids=lambda c: f"tied{c.tie_word_embeddings:d}-bias{c.attention_bias:d}{c.mlp_bias:d}")
def config(request) -> LlamaConfig:
    return request.param


def key(seed: int) -> jax.Array:
    """A key of the generator that compiles fastest; the parameters ask nothing else of it."""
    return jax.random.key(seed, impl="rbg")


def meta_state_dict(config: LlamaConfig) -> dict[str, torch.Tensor]:
    """The tensors of transformers' model of this configuration, without memory behind them."""
    fields = dataclasses.asdict(config)
    fields.pop("rope")
    with torch.device("meta"):
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields)).state_dict()


def test_table_and_block_have_the_same_paths_and_shapes(config):
    _, state = abstract_block(config)
    in_block = {path: leaf.get_value().shape for path, leaf in nnx.to_flat_state(state)}
    in_table = {row.path[1:]: row.shape(config) for row in parameters(config) if row.stacked}
    assert in_table == in_block


def test_stacked_leaves_are_one_block_per_layer(config):
    layers = abstract_params(config)["layers"]
    _, state = abstract_block(config)
    of_one_layer = jax.tree.map(lambda leaf: leaf.shape, nnx.to_pure_dict(state), is_leaf=lambda x: hasattr(x, "shape"))
    stacked = jax.tree.map(lambda leaf: leaf.shape[1:], layers)
    assert stacked == of_one_layer
    assert {leaf.shape[0] for leaf in jax.tree.leaves(layers)} == {config.num_hidden_layers}


def test_names_and_paths_are_unique(config):
    rows = parameters(config)
    names = [name for row in rows for name in row.names(config)]
    assert len(set(names)) == len(names)
    assert len({row.path for row in rows}) == len(rows)


def test_checkpoint_names_and_shapes_are_those_of_transformers(config):
    ours = {name: row.shape(config) for row in parameters(config) for name in row.names(config)}
    theirs = {name: tuple(tensor.shape) for name, tensor in meta_state_dict(config).items()}
    if config.tie_word_embeddings:
        del theirs["lm_head.weight"]  # the same tensor as the embedding, which checkpoints store once
    assert ours == theirs


def test_logical_axes_have_one_size_each(config):
    for row in parameters(config):
        assert len(row.logical_axes()) == len(row.stacked_shape(config))
        assert row.stacked_shape(config)[row.stacked :] == row.shape(config)
        assert len(row.names(config)) == (config.num_hidden_layers if row.stacked else 1)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_initial_parameters_have_the_stated_shapes_and_dtype(config, dtype):
    drawn = jax.eval_shape(lambda: init_params(config, jax.random.key(0), dtype))
    expected = abstract_params(config, dtype)
    assert jax.tree.structure(drawn) == jax.tree.structure(expected)
    for leaf, wanted in zip(jax.tree.leaves(drawn), jax.tree.leaves(expected), strict=True):
        assert (leaf.shape, leaf.dtype) == (wanted.shape, dtype)


def test_initial_parameters_follow_from_the_key_alone():
    def leaves(random_key, config=BASE):
        return {row.path: np.asarray(leaf) for row, leaf in iterate_params(init_params(config, random_key), config)}

    first, again, other = leaves(key(3)), leaves(key(3)), leaves(key(4))
    biased = leaves(key(3), dataclasses.replace(BASE, attention_bias=True, mlp_bias=True))
    for row in parameters(BASE):
        np.testing.assert_array_equal(first[row.path], again[row.path])
        np.testing.assert_array_equal(first[row.path], biased[row.path])
        assert (row.initializer == "normal") == bool((first[row.path] != other[row.path]).any())


@pytest.mark.slow
def test_initial_values_are_normal_matrices_unit_norms_and_zero_biases():
    config = dataclasses.replace(VARIANTS[3], hidden_size=64, vocab_size=500, initializer_range=0.1)
    assert config.attention_bias and config.mlp_bias
    seen = set()
    for row, leaf in iterate_params(init_params(config, key(0)), config):
        values = np.asarray(leaf)
        seen.add(row.initializer)
        if row.initializer == "normal":
            # Four standard errors of the mean and of the standard deviation.
            assert abs(values.mean()) < 0.4 / math.sqrt(values.size), row.path
            assert abs(values.std() - 0.1) < 0.4 / math.sqrt(2 * values.size), row.path
        else:
            assert (values == (1 if row.path[-1] == "weight" else 0)).all(), row.path
    assert seen == {"normal", "ones", "zeros"}


def test_leaves_of_equal_shape_are_drawn_independently():
    params = init_params(BASE, key(0))
    attention, mlp = params["layers"]["self_attn"], params["layers"]["mlp"]
    assert not np.array_equal(attention["k_proj"]["weight"], attention["v_proj"]["weight"])
    assert not np.array_equal(mlp["gate_proj"]["weight"], mlp["up_proj"]["weight"])
    assert not np.array_equal(params["embed_tokens"]["weight"], params["lm_head"]["weight"])
    assert not np.array_equal(mlp["up_proj"]["weight"][0], mlp["up_proj"]["weight"][1])


def test_a_missing_leaf_is_named():
    params = build_params(BASE, lambda row: row.path)
    del params["layers"]["mlp"]["up_proj"]
    with pytest.raises(KeyError, match="up_proj"):
        list(iterate_params(params, BASE))


@pytest.mark.parametrize("size", PUBLISHED_SIZES)
def test_published_sizes_are_counted_without_allocating(size):
    config, published = PUBLISHED_SIZES[size]
    assert count_parameters(config) == published
    drawn = jax.eval_shape(lambda: init_params(config, jax.random.key(0), jnp.bfloat16))
    assert sum(leaf.size for leaf in jax.tree.leaves(drawn)) == published


@pytest.mark.parametrize("size", PUBLISHED_SIZES)
def test_published_sizes_have_the_names_and_logits_of_their_model(size):
    config, _ = PUBLISHED_SIZES[size]
    ours = {name: row.shape(config) for row in parameters(config) for name in row.names(config)}
    assert ours == {name: tuple(tensor.shape) for name, tensor in meta_state_dict(config).items()}
    tokens_BT = jax.ShapeDtypeStruct((2, 16), jnp.int32)
    logits = jax.eval_shape(lambda p, t: forward(p, t, config), abstract_params(config, jnp.bfloat16), tokens_BT)
    assert (logits.shape, logits.dtype) == ((2, 16, 128256), jnp.bfloat16)


def test_a_tied_model_is_smaller_by_its_head(config):
    tied = dataclasses.replace(config, tie_word_embeddings=True)
    untied = dataclasses.replace(config, tie_word_embeddings=False)
    assert count_parameters(untied) - count_parameters(tied) == config.vocab_size * config.hidden_size
