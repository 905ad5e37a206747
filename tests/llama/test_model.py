"""Properties of the forward pass that hold for any parameters: causality, padding, dtypes, gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clinmerge_jax.llama import rope
from clinmerge_jax.llama.config import LlamaConfig, RopeConfig
from clinmerge_jax.llama.model import forward, last_states, logits, rms_norm
from clinmerge_jax.llama.parameters import init_params, iterate_params

CONFIG = LlamaConfig(
    vocab_size=61,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=3,
    head_dim=10,
    rms_norm_eps=1e-5,
    max_position_embeddings=16,
    attention_bias=True,
    mlp_bias=True,
    initializer_range=0.3,
)
TOKENS = 20
ROPES = {
    "default": RopeConfig(),
    "linear": RopeConfig("linear", 10000.0, 2.0),
    "dynamic": RopeConfig("dynamic", 10000.0, 2.0),
    "llama3": RopeConfig("llama3", 500.0, 4.0, 1.0, 4.0, 16),
}
F32_NOISE = 1e-5  # sums over other lengths are rounded in another order


def key(seed: int) -> jax.Array:
    """A key of the generator that compiles fastest; the parameters ask nothing else of it."""
    return jax.random.key(seed, impl="rbg")


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def run(params, tokens_BT, config, dtype=None):
    with jax.default_matmul_precision("highest"):
        return forward(params, tokens_BT, config, dtype=dtype)


@pytest.fixture(scope="module")
def params():
    return init_params(CONFIG, key(0))


@pytest.fixture(scope="module")
def tokens_BT():
    return jax.random.randint(jax.random.key(1), (2, TOKENS), 0, CONFIG.vocab_size)


@pytest.fixture(scope="module", params=ROPES)
def config(request) -> LlamaConfig:
    return dataclasses.replace(CONFIG, rope=ROPES[request.param])


def test_logits_have_one_row_per_token(params, tokens_BT):
    logits_BTV = run(params, tokens_BT, CONFIG)
    assert logits_BTV.shape == (2, TOKENS, CONFIG.vocab_size) and logits_BTV.dtype == jnp.float32
    assert np.isfinite(logits_BTV).all() and np.std(logits_BTV) > 0.1


@pytest.mark.parametrize("changed", [1, 7, TOKENS - 1])
def test_a_token_changes_no_logits_before_it_and_those_from_it_on(params, tokens_BT, config, changed):
    before = np.asarray(run(params, tokens_BT, config))
    other_BT = tokens_BT.at[:, changed].set((tokens_BT[:, changed] + 1) % CONFIG.vocab_size)
    after = np.asarray(run(params, other_BT, config))
    np.testing.assert_array_equal(after[:, :changed], before[:, :changed])
    assert (np.abs(after[:, changed:] - before[:, changed:]).max(axis=-1) > 1e-4).all()


def test_rows_of_a_batch_do_not_see_each_other(params, tokens_BT):
    together = np.asarray(run(params, tokens_BT, CONFIG))
    other_BT = tokens_BT.at[1].set((tokens_BT[1] + 1) % CONFIG.vocab_size)
    np.testing.assert_array_equal(np.asarray(run(params, other_BT, CONFIG))[0], together[0])
    alone = np.asarray(run(params, tokens_BT[:1], CONFIG))
    np.testing.assert_allclose(alone[0], together[0], rtol=0, atol=F32_NOISE)


def test_right_padding_changes_no_logits_before_it(params, tokens_BT, config):
    # Dynamic RoPE depends on the length beyond max_position_embeddings: pad only up to that here.
    length, padded_length = (9, 16) if config.rope.rope_type == "dynamic" else (13, TOKENS)
    short = np.asarray(run(params, tokens_BT[:, :length], config))
    for padding in (0, CONFIG.vocab_size - 1):
        padded_BT = jnp.full((2, padded_length), padding, tokens_BT.dtype).at[:, :length].set(tokens_BT[:, :length])
        padded = np.asarray(run(params, padded_BT, config))
        np.testing.assert_allclose(padded[:, :length], short, rtol=0, atol=F32_NOISE)


@pytest.mark.parametrize("rope_type", ["default", "linear", "llama3"])
def test_documents_in_one_row_have_the_logits_they_have_alone(params, tokens_BT, rope_type):
    config = dataclasses.replace(CONFIG, rope=ROPES[rope_type])
    sizes = [7, 1, TOKENS - 8]
    segments_BT = jnp.broadcast_to(jnp.repeat(jnp.arange(3), jnp.array(sizes)), tokens_BT.shape)
    positions_BT = jnp.broadcast_to(jnp.concatenate([jnp.arange(size) for size in sizes]), tokens_BT.shape)
    states = last_states(params, tokens_BT, config, positions_BT=positions_BT, segments_BT=segments_BT)
    packed = logits(params, states, config)
    start = 0
    for size in sizes:
        part = slice(start, start + size)
        np.testing.assert_allclose(packed[:, part], forward(params, tokens_BT[:, part], config), atol=F32_NOISE)
        start += size


def test_dynamic_rope_is_default_rope_up_to_its_limit_and_another_beyond(params, tokens_BT):
    dynamic = dataclasses.replace(CONFIG, rope=ROPES["dynamic"])
    within_BT = tokens_BT[:, : CONFIG.max_position_embeddings]
    within = np.abs(run(params, within_BT, dynamic) - run(params, within_BT, CONFIG)).max()
    beyond = np.abs(run(params, tokens_BT, dynamic) - run(params, tokens_BT, CONFIG)).max()
    assert within < F32_NOISE and beyond > 1e-3


def test_order_of_tokens_matters(params, tokens_BT):
    """Without rotary positions the last token would see the others as a set."""
    swapped_BT = tokens_BT.at[:, 0].set(tokens_BT[:, 1]).at[:, 1].set(tokens_BT[:, 0])
    assert (tokens_BT[:, 0] != tokens_BT[:, 1]).all()
    last, swapped = run(params, tokens_BT, CONFIG)[:, -1], run(params, swapped_BT, CONFIG)[:, -1]
    assert np.abs(last - swapped).max() > 1e-4


@pytest.mark.parametrize("stored", [jnp.float32, jnp.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("computed", [None, jnp.float32, jnp.bfloat16], ids=["own", "f32", "bf16"])
def test_dtype_is_that_of_the_computation(params, tokens_BT, stored, computed):
    stored_params = jax.tree.map(lambda leaf: leaf.astype(stored), params)
    logits_BTV = run(stored_params, tokens_BT, CONFIG, computed)
    assert logits_BTV.dtype == (computed or stored)
    cast_before = jax.tree.map(lambda leaf: leaf.astype(computed or stored), stored_params)
    np.testing.assert_array_equal(logits_BTV, run(cast_before, tokens_BT, CONFIG))


def test_bfloat16_parameters_computed_in_float32_lose_nothing_more(params, tokens_BT):
    stored = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    widened = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), stored)
    np.testing.assert_array_equal(run(stored, tokens_BT, CONFIG, jnp.float32), run(widened, tokens_BT, CONFIG))


@pytest.mark.parametrize(
    ("tied", "dtype"),
    [(False, jnp.float32), pytest.param(True, jnp.bfloat16, marks=pytest.mark.slow)],
    ids=["f32", "tied-bf16"],
)
def test_every_parameter_has_a_finite_gradient_that_is_not_zero(tokens_BT, tied, dtype):
    config = dataclasses.replace(CONFIG, tie_word_embeddings=tied)
    params = init_params(config, key(0))

    @jax.jit
    def gradient(params):
        def loss(params):
            logits_BTV = forward(params, tokens_BT[:, :-1], config, dtype=dtype).astype(jnp.float32)
            log_probabilities = jax.nn.log_softmax(logits_BTV)
            return -jnp.take_along_axis(log_probabilities, tokens_BT[:, 1:, None], axis=-1).mean()

        return jax.grad(loss)(params)

    # The transpose of jax.nn.dot_product_attention's own bf16 products mixes dtypes, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard" if dtype == jnp.bfloat16 else "strict"):
        gradients = gradient(params)
    for row, leaf in iterate_params(gradients, config):
        assert leaf.dtype == jnp.float32
        assert np.isfinite(leaf).all(), row.path
        # A constant added to all keys shifts every score of a query alike where RoPE does not turn it,
        # so a key bias has a small gradient, yet not none.
        assert np.abs(leaf).max() > 1e-8, row.path


def test_rms_norm_is_its_formula_and_is_computed_in_float32():
    x = jax.random.normal(jax.random.key(0), (3, 64)) * 50
    weight = jnp.linspace(0.5, 2.0, 64)
    exact = np.asarray(x, np.float64)
    exact = exact / np.sqrt((exact**2).mean(-1, keepdims=True) + 0.1) * np.asarray(weight, np.float64)
    np.testing.assert_allclose(rms_norm(x, weight, 0.1), exact, rtol=1e-6)
    # 300 squared overflows nothing in float32, but it does in float16.
    ones = jnp.ones((64,), jnp.float16)
    np.testing.assert_allclose(rms_norm(300 * ones, ones, 1e-5), ones, rtol=1e-3)


def test_rotation_keeps_lengths_and_makes_scores_depend_on_distance_only(config):
    positions_BT = jnp.arange(TOKENS)[None]
    cos_BTF, sin_BTF = rope.rotations(config, positions_BT)
    vectors = jax.random.normal(jax.random.key(0), (2, CONFIG.head_dim))
    query, key = (
        rope.rotate(jnp.broadcast_to(vector, (1, TOKENS, 1, CONFIG.head_dim)), cos_BTF, sin_BTF)[0, :, 0]
        for vector in vectors
    )
    np.testing.assert_allclose(jnp.linalg.norm(query, axis=-1), jnp.linalg.norm(vectors[0]), rtol=1e-5)
    scores = np.asarray(jnp.matmul(query, key.T, precision="highest"))
    for distance in range(-TOKENS + 1, TOKENS):
        diagonal = np.diagonal(scores, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], atol=1e-4)
    assert np.ptp(scores[0]) > 0.1


def test_an_unknown_rope_type_is_refused():
    config = dataclasses.replace(CONFIG, rope=RopeConfig("yarn"))
    with pytest.raises(ValueError, match="yarn"):
        rope.inverse_frequencies(config, jnp.asarray(4))
