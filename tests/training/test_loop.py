"""The plain training loop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import tiny_config

from clinmerge_jax.llama.model import forward
from clinmerge_jax.llama.parameters import init_params
from clinmerge_jax.training.loop import TrainingSettings, optimizer, target_loss, train

CONFIG = tiny_config(tie_word_embeddings=True)


@pytest.fixture(autouse=True)
def usual_promotion():
    """Optax mixes integer step counts with floats, which strict promotion refuses."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def _windows(count=8, length=16):
    rng = np.random.default_rng(0)
    tokens = np.cumsum(rng.integers(1, 3, (count, length + 1)), axis=1).astype(np.int32) % 32
    return tokens, np.ones_like(tokens, bool)


def test_a_small_text_is_learned_and_the_same_seed_gives_the_same_weights():
    settings = TrainingSettings(steps=60, batch_size=4, learning_rate=1e-2, warmup_steps=5)
    losses = []
    first = train(
        init_params(CONFIG, jax.random.key(0)), CONFIG, _windows(), settings, lambda _, loss: losses.append(loss)
    )
    second = train(init_params(CONFIG, jax.random.key(0)), CONFIG, _windows(), settings)
    assert len(losses) == 60 and losses[-1] < 0.5 * losses[0]
    assert all(map(lambda a, b: np.array_equal(a, b), jax.tree.leaves(first), jax.tree.leaves(second)))


def test_only_target_tokens_count():
    params = init_params(CONFIG, jax.random.key(1))
    tokens, targets = _windows(2)
    targets[:, 5:] = False
    loss = target_loss(params, jnp.asarray(tokens), jnp.asarray(targets), CONFIG)
    logits = forward(params, jnp.asarray(tokens), CONFIG)
    expected = optax.softmax_cross_entropy_with_integer_labels(logits[:, :4], tokens[:, 1:5]).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_a_batch_without_targets_has_no_loss_and_no_gradient():
    params = init_params(CONFIG, jax.random.key(1))
    tokens, targets = _windows(2)
    loss, gradient = jax.value_and_grad(target_loss)(params, jnp.asarray(tokens), jnp.asarray(targets & False), CONFIG)
    assert loss == 0 and all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_weight_decay_spares_norms():
    settings = TrainingSettings(steps=10, learning_rate=0.1, warmup_steps=0, weight_decay=0.5)
    params = init_params(CONFIG, jax.random.key(1))
    transformation = optimizer(settings)
    nothing = jax.tree.map(jnp.zeros_like, params)
    updates, _ = transformation.update(nothing, transformation.init(params), params)
    assert not np.any(updates["norm"]["weight"]) and not np.any(updates["layers"]["input_layernorm"]["weight"])
    np.testing.assert_allclose(
        updates["layers"]["mlp"]["up_proj"]["weight"], -0.05 * params["layers"]["mlp"]["up_proj"]["weight"], rtol=1e-5
    )


def test_one_step_is_enough_for_a_schedule():
    params = init_params(CONFIG, jax.random.key(1))
    train(params, CONFIG, _windows(), TrainingSettings(steps=1, batch_size=2))


def test_a_loss_that_is_not_finite_stops_training():
    params = init_params(CONFIG, jax.random.key(1))
    params["norm"]["weight"] = params["norm"]["weight"] * jnp.nan
    with pytest.raises(FloatingPointError, match="step 1 "):
        train(params, CONFIG, _windows(), TrainingSettings(steps=3, batch_size=2))
