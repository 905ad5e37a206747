"""The chunked loss against log-softmax over whole logits."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny_config
from training_batches import draw_documents, make_batch

from clinmerge_jax.llama.model import last_states, logits
from clinmerge_jax.llama.parameters import init_params
from clinmerge_jax.training.loss import head_params, losses

CONFIG = tiny_config(initializer_range=0.3)
LENGTH = 12


@pytest.fixture(scope="module")
def params():
    return init_params(CONFIG, jax.random.key(0, impl="rbg"))


@pytest.fixture(scope="module")
def batch():
    documents = draw_documents(6, CONFIG.vocab_size, LENGTH // 2)
    return make_batch([documents[:2], documents[2:4], documents[4:5], []], LENGTH, (4,))


def states(params, batch):
    return last_states(params, batch.tokens, CONFIG, positions_BT=batch.positions, segments_BT=batch.segments)


def plain_losses(params, x_BTD, batch, start=None):
    """Sums over each row's targets from the logits of every position."""
    scores_BTV = jax.nn.log_softmax(logits(params, x_BTD, CONFIG)[:, :-1])
    label_BT = jnp.take_along_axis(scores_BTV, batch.tokens[:, 1:, None], axis=-1)[..., 0]
    learned_BT = batch.targets[:, 1:]
    divergence_B = jnp.zeros(len(batch.tokens))
    if start is not None:
        start_BTV = jax.nn.log_softmax(logits(start[0], start[1], CONFIG)[:, :-1])
        divergence_BT = jnp.sum(jnp.exp(start_BTV) * (start_BTV - scores_BTV), axis=-1)
        divergence_B = jnp.sum(divergence_BT, axis=1, where=learned_BT)
    return -jnp.sum(label_BT, axis=1, where=learned_BT), divergence_B


@pytest.mark.parametrize("chunk, parts", [(5, 1), (100, 2)])
def test_sums_and_gradients_are_those_of_whole_logits(params, batch, chunk, parts):
    other = init_params(CONFIG, jax.random.key(1, impl="rbg"))
    x_BTD, start = states(params, batch), (head_params(other, CONFIG), states(other, batch))

    def chunked(head, x_BTD):
        return losses(head, x_BTD, batch, CONFIG, kl=0.5, start=start, chunk=chunk, parts=parts)

    def plain(head, x_BTD):
        cross_entropy_B, divergence_B = plain_losses(head, x_BTD, batch, start)
        return jnp.sum(cross_entropy_B + 0.5 * divergence_B), (cross_entropy_B, divergence_B)

    grad = functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
    ours, found = jax.jit(grad(chunked))(head_params(params, CONFIG), x_BTD)
    theirs, (cross_entropy_B, divergence_B) = jax.jit(grad(plain))(head_params(params, CONFIG), x_BTD)
    np.testing.assert_allclose(found.cross_entropy, cross_entropy_B, rtol=1e-5)
    np.testing.assert_allclose(found.divergence, divergence_B, rtol=1e-4)
    assert found.targets.tolist() == batch.targets.sum(axis=1).tolist() and found.targets[-1] == 0
    assert found.cross_entropy[-1] == 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max()), ours, theirs)


def test_no_array_holds_the_logits_of_the_whole_batch(params, batch):
    head = head_params(params, CONFIG)

    def loss(head, x_BTD):
        return losses(head, x_BTD, batch, CONFIG, chunk=3)[0]

    program = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(head, states(params, batch)).as_text()
    sizes = {math.prod(map(int, shape.split("x")[:-1])) for shape in re.findall(r"tensor<((?:\d+x)+)f32>", program)}
    assert 3 * CONFIG.vocab_size in sizes  # of a chunk
    assert max(sizes) < batch.tokens.size * CONFIG.vocab_size


def test_padded_rows_of_the_vocabulary_have_no_part(params, batch):
    padded = jax.tree.map(lambda leaf: leaf, params)
    padded["lm_head"] = {"weight": jnp.pad(params["lm_head"]["weight"], ((0, 3), (0, 0)), constant_values=9.0)}
    x_BTD = states(params, batch)
    start = (head_params(padded, CONFIG), x_BTD[..., ::-1])
    _, more = losses(start[0], x_BTD, batch, CONFIG, start=start)
    whole = head_params(params, CONFIG)
    _, same = losses(whole, x_BTD, batch, CONFIG, start=(whole, start[1]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), more, same)


def test_bfloat16_states_have_float32_losses(params, batch):
    x_BTD = states(params, batch).astype(jnp.bfloat16)
    _, found = losses(head_params(params, CONFIG), x_BTD, batch, CONFIG)
    wide, _ = plain_losses(params, x_BTD.astype(jnp.float32), batch)
    assert found.cross_entropy.dtype == jnp.float32
    np.testing.assert_allclose(found.cross_entropy, wide, rtol=1e-2)
