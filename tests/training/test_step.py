"""One step of training: what changes nothing about it, what freezes, what it adds, and what it says."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import tiny_config
from training_batches import draw_documents, make_batch, take_step

from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama import attention
from clinmerge_jax.llama.attention import Backend
from clinmerge_jax.llama.lora import LoraSettings
from clinmerge_jax.llama.model import Remat, attend_causally
from clinmerge_jax.llama.parameters import init_params
from clinmerge_jax.training.lora import init_adapter
from clinmerge_jax.training.optimizer import OptimizerSettings
from clinmerge_jax.training.step import StepSettings, evaluate_step, init_state
from clinmerge_jax.training.weights import frozen_paths, join, split

CONFIG = tiny_config(initializer_range=0.2)
OPTIMIZER = OptimizerSettings(learning_rate=1e-2, clip_norm=0.0)
SETTINGS = StepSettings(OPTIMIZER, 10, dtype=jnp.float32, chunk=8)
LORA = LoraSettings(rank=2, alpha=4.0, dropout=0.5, targets=("down_proj",))
DOCUMENTS = draw_documents(8, CONFIG.vocab_size, 8)
LENGTH = 8

take = functools.partial(take_step, config=CONFIG)


def batch_of(micro_batches):
    return make_batch([[document] for document in DOCUMENTS], LENGTH, (micro_batches, 8 // micro_batches))


def gradients(state):
    """Of the first step: the first moment is a tenth of them."""
    return jax.tree.map(lambda leaf: np.asarray(leaf) * 10, optax.tree.get(state.opt_state, "mu"))


def assert_alike(ours, theirs, tolerance=1e-6):
    """Every leaf within the tolerance of the other's largest entry."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max(), rtol=0), ours, theirs)


@pytest.fixture(scope="module")
def params():
    return init_params(CONFIG, jax.random.key(0, impl="rbg"))


@pytest.fixture(scope="module")
def plain(params):
    """The step that others are held against."""
    return take(init_state(params, SETTINGS), {}, batch_of(1), settings=SETTINGS)


@pytest.fixture(scope="module")
def adapter():
    """An adapter whose B is not zero, so that A has gradients."""
    rng = np.random.default_rng(1)
    factors = jax.eval_shape(lambda: init_adapter(CONFIG, LORA, jax.random.key(0)))
    return jax.tree.map(lambda leaf: jnp.asarray(0.2 * rng.normal(size=leaf.shape), leaf.dtype), factors)


def test_packed_documents_have_the_gradients_of_single_ones(params):
    rows = [[DOCUMENTS[index] for index in range(begin, begin + 4)] for begin in (0, 4)]
    settings = dataclasses.replace(SETTINGS, dtype=jnp.float64)
    with jax.enable_x64(True):  # in float32 the order of the sums alone makes a difference of 1e-6
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
        (packed, metrics), (single, expected) = (
            take(init_state(wide, settings), {}, batch, settings=settings)
            for batch in (make_batch(rows, 32, (1, 2)), batch_of(1))
        )
    assert_alike(gradients(packed), gradients(single), 1e-12)
    assert metrics.targets == expected.targets
    np.testing.assert_allclose(metrics.loss, expected.loss, rtol=1e-12)


def test_a_kernel_that_knows_no_segments_gets_rows_of_one_document_without_them(params, plain, monkeypatch):
    monkeypatch.setattr(attention, "_cudnn", lambda q_BTNH, k_BTGH, v_BTGH: attend_causally(q_BTNH, k_BTGH, v_BTGH))
    settings = dataclasses.replace(SETTINGS, attention=Backend.CUDNN)
    state, metrics = take(init_state(params, settings), {}, batch_of(1), settings=settings)
    assert_alike(gradients(state), gradients(plain[0]))
    np.testing.assert_allclose(metrics.loss, plain[1].loss, rtol=1e-6)


def test_the_kernel_of_the_settings_attends(params):
    settings = dataclasses.replace(SETTINGS, attention=Backend.SPLASH)
    traced = take.func.trace(init_state(params, settings), {}, batch_of(1), settings=settings, config=CONFIG)
    assert "pallas_call" in str(traced.jaxpr)


def test_accumulation_weighs_micro_batches_by_their_targets(params, plain):
    accumulated, metrics = take(init_state(params, SETTINGS), {}, batch_of(8), settings=SETTINGS)
    assert len(set(metrics.rows.targets[:, 0].tolist())) > 1
    assert_alike(gradients(accumulated), gradients(plain[0]))
    np.testing.assert_allclose(metrics.rows.cross_entropy[:, 0], plain[1].rows.cross_entropy[0], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("remat", [Remat.FULL, Remat.DOTS])
def test_remat_changes_no_gradient(params, plain, remat):
    settings = dataclasses.replace(SETTINGS, remat=remat)
    assert_alike(
        gradients(take(init_state(params, settings), {}, batch_of(1), settings=settings)[0]), gradients(plain[0])
    )


def test_bfloat16_computes_narrow_and_updates_float32_weights(params, plain):
    settings = dataclasses.replace(SETTINGS, dtype=jnp.bfloat16)
    state, metrics = take(init_state(params, settings), {}, batch_of(1), settings=settings)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.trained)} == {jnp.dtype(jnp.float32)}
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients(state))} == {np.dtype(np.float32)}
    assert 0 < abs(metrics.loss - plain[1].loss) < 0.02 * plain[1].loss


def test_metrics_are_those_of_the_batch_before_the_step(params, plain):
    state, metrics = plain
    losses = evaluate_step(params, {}, jax.tree.map(lambda x: x[0], batch_of(1)), settings=SETTINGS, config=CONFIG)
    np.testing.assert_allclose(metrics.loss, float(losses.cross_entropy.sum()) / int(losses.targets.sum()), rtol=1e-6)
    assert metrics.targets == sum(targets.sum() for _, targets in DOCUMENTS) and state.step == 1
    np.testing.assert_allclose(metrics.gradient_norm, optax.tree.norm(gradients(state)), rtol=1e-5)
    assert metrics.learning_rate == np.float32(OPTIMIZER.learning_rate) and metrics.kl == 0


def test_frozen_leaves_have_no_moments_and_leave_the_others_gradients_alone(params, plain):
    frozen_names = frozen_paths(CONFIG, ["embed_tokens", r"layers\.\d+\.mlp", "norm"])
    trained, frozen = split(params, CONFIG, frozen_names)
    state, _ = take(init_state(trained, SETTINGS), frozen, batch_of(1), settings=SETTINGS)
    assert set(state.trained) == {"layers", "lm_head"} and set(state.trained["layers"]) == {"self_attn"}
    assert jax.tree.structure(gradients(state)) == jax.tree.structure(trained)
    whole, _ = split(gradients(plain[0]), CONFIG, frozen_names)
    assert_alike(gradients(state), whole)
    after = join(state.trained, frozen)
    assert jax.tree.structure(after) == jax.tree.structure(params)
    _, same = split(after, CONFIG, frozen_names)
    jax.tree.map(np.testing.assert_array_equal, same, frozen)


@pytest.mark.parametrize(
    "pattern, message",
    [
        ("(", "is not a regular expression"),
        ("lm_heads", "matches no tensor; names are such as model.layers.0.input_layernorm.weight"),
        (r"layers\.1\.", "matches model.layers.1.input_layernorm.weight but not every layer's"),
        ("", "every tensor is frozen"),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused(pattern, message):
    with pytest.raises(BadInput, match=message):
        frozen_paths(CONFIG, [pattern])


def test_a_row_whose_loss_is_not_finite_is_told_apart(params):
    token = DOCUMENTS[0][0][0]
    broken = {**params, "embed_tokens": {"weight": params["embed_tokens"]["weight"].at[token].set(jnp.nan)}}
    _, metrics = take(init_state(broken, SETTINGS), {}, batch_of(1), settings=SETTINGS)
    holds = [token in tokens[:-1] for tokens, _ in DOCUMENTS]
    assert True in holds and False in holds
    assert (~np.isfinite(metrics.rows.cross_entropy[0])).tolist() == holds
    assert not np.isfinite(metrics.loss)


def test_a_batch_without_targets_changes_nothing(params):
    batch = dataclasses.replace(batch_of(1), targets=np.zeros((1, 8, LENGTH), bool))
    state, metrics = take(init_state(params, SETTINGS), {}, batch, settings=SETTINGS)
    assert metrics.loss == 0 and metrics.targets == 0 and metrics.gradient_norm == 0
    jax.tree.map(np.testing.assert_array_equal, state.trained, params)


@pytest.mark.slow
def test_a_grid_of_rates_and_seeds_is_the_step_mapped(params, adapter):
    settings = dataclasses.replace(SETTINGS, lora=LORA)
    batches = jax.tree.map(lambda one: np.stack([one, one[:, ::-1]]), batch_of(1))

    def begin(rate, seed):
        return dataclasses.replace(init_state(adapter, settings, seed), learning_rate=rate)

    rates, seeds = jnp.array([1e-2, 3e-3]), jnp.array([4, 5], jnp.uint32)
    one_step = functools.partial(take, settings=settings)
    states, metrics = jax.vmap(one_step, in_axes=(0, None, 0))(jax.vmap(begin)(rates, seeds), params, batches)

    def of(run, tree):
        return jax.tree.map(lambda leaf: leaf[run], tree)

    for run in range(2):
        single = begin(rates[run], seeds[run])
        state, seen = one_step(single, params, of(run, batches))
        np.testing.assert_allclose(metrics.loss[run], seen.loss, rtol=1e-6)
        assert_alike(of(run, states.trained), state.trained)
    assert metrics.learning_rate.tolist() == rates.tolist()


@pytest.mark.slow
def test_kl_holds_to_the_start_with_and_without_an_adapter(params, adapter):
    settings = dataclasses.replace(SETTINGS, kl=0.5)
    at_start, metrics = take(init_state(params, settings), {}, batch_of(1), params, settings=settings)
    assert abs(metrics.kl) < 1e-6  # where the divergence has its minimum
    moved, metrics = take(at_start, {}, batch_of(1), params, settings=settings)
    assert metrics.kl > 1e-4
    of_adapter = dataclasses.replace(settings, lora=dataclasses.replace(LORA, dropout=0.0))
    _, metrics = take(init_state(adapter, of_adapter), params, batch_of(1), settings=of_adapter)
    assert metrics.kl > 1e-4
    fresh = init_adapter(CONFIG, of_adapter.lora, jax.random.key(1))
    _, metrics = take(init_state(fresh, of_adapter), params, batch_of(1), settings=of_adapter)
    assert abs(metrics.kl) < 1e-6


@pytest.mark.slow
def test_l2_pulls_every_weight_to_where_it_began(params, plain):
    settings = dataclasses.replace(SETTINGS, l2=0.3)
    start = jax.tree.map(lambda leaf: (leaf - 0.5).astype(jnp.bfloat16), params)
    state, _ = take(init_state(params, settings), {}, batch_of(1), start, settings=settings)
    expected = jax.tree.map(
        lambda gradient, leaf, first: gradient + 0.3 * (leaf - first.astype(jnp.float32)),
        gradients(plain[0]),
        params,
        start,
    )
    assert_alike(gradients(state), expected)
