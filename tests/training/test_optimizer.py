"""Schedules, clipping and exclusions of the optimiser; test_against_torch.py holds whole runs against torch's AdamW."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from support import tiny_config

from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.lora import LoraSettings
from clinmerge_jax.llama.parameters import abstract_params, iterate_params
from clinmerge_jax.training.lora import init_adapter
from clinmerge_jax.training.optimizer import (
    OptimizerSettings,
    Schedule,
    adamw,
    clip_by_norm,
    is_matrix,
    rate_share,
)

CONFIG = tiny_config(attention_bias=True, mlp_bias=True)


@pytest.fixture(autouse=True)
def usual_promotion():
    """Optax mixes integer step counts with floats, which strict promotion refuses; a step does the same."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize(
    "schedule, expected",
    [
        (Schedule.COSINE, [0.0, 0.5, 1.0, 0.2 + 0.4 * (1 + np.cos(np.pi / 4)), 0.6, 0.2]),
        (Schedule.LINEAR, [0.0, 0.5, 1.0, 0.8, 0.6, 0.2]),
        (Schedule.CONSTANT, [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_schedules_rise_from_zero_and_end_at_their_share(schedule, expected):
    share = rate_share(OptimizerSettings(schedule=schedule, warmup_steps=10, final_share=0.2), 50)
    found = [float(share(jnp.float32(step))) for step in (0, 5, 10, 20, 30, 50)]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("schedule", Schedule)
def test_runs_of_different_lengths_follow_optax_s_schedules_in_one_program(schedule):
    settings, lengths = OptimizerSettings(schedule=schedule, warmup_steps=3, final_share=0.2), [2, 4, 9, 40]
    taken = jnp.arange(45, dtype=jnp.float32)
    found = jax.jit(jax.vmap(lambda steps: rate_share(settings, steps)(taken)))(jnp.float32(lengths))
    for length, shares in zip(lengths, found, strict=True):
        falling = max(1, length - 3)
        after = {
            Schedule.COSINE: optax.cosine_decay_schedule(1.0, falling, 0.2),
            Schedule.LINEAR: optax.linear_schedule(1.0, 0.2, falling),
            Schedule.CONSTANT: optax.constant_schedule(1.0),
        }[schedule]
        expected = optax.join_schedules([optax.linear_schedule(0.0, 1.0, 3), after], [3])(taken)
        np.testing.assert_allclose(shares, np.broadcast_to(expected, shares.shape), rtol=1e-6)


def test_without_warmup_the_first_step_has_the_whole_rate():
    assert rate_share(OptimizerSettings(), 10)(jnp.float32(0)) == 1.0


@pytest.mark.parametrize("limit", [0.5, 50.0])
def test_gradients_are_clipped_as_by_torch(limit):
    values = [np.linspace(-3, 3, 12, dtype=np.float32).reshape(3, 4), np.full(2, 4, np.float32)]
    theirs = [torch.nn.Parameter(torch.zeros(value.shape)) for value in values]
    for parameter, value in zip(theirs, values):
        parameter.grad = torch.tensor(value)
    torch.nn.utils.clip_grad_norm_(theirs, limit)
    clip = clip_by_norm(limit)
    ours, _ = clip.update([jnp.asarray(value) for value in values], clip.init(values))
    for parameter, gradient in zip(theirs, ours):
        np.testing.assert_allclose(gradient, parameter.grad.numpy(), rtol=1e-6)


def test_matrices_are_decayed_and_norms_and_biases_are_not():
    marked = is_matrix(abstract_params(CONFIG))
    decayed = {row.path[-2:] for row, yes in iterate_params(marked, CONFIG) if yes}
    assert ("embed_tokens", "weight") in decayed and ("lm_head", "weight") in decayed
    assert ("q_proj", "weight") in decayed and ("q_proj", "bias") not in decayed
    assert not any("norm" in module for module, _ in decayed)
    adapter = jax.eval_shape(lambda: init_adapter(CONFIG, LoraSettings(), jax.random.key(0)))
    assert all(jax.tree.leaves(is_matrix(adapter)))


def test_the_first_moment_alone_may_be_narrow():
    weights = {"norm": {"weight": jnp.ones(3)}}
    transformation = adamw(OptimizerSettings(first_moment_dtype=jnp.bfloat16))
    _, state = transformation.update(weights, transformation.init(weights), weights)
    dtypes = {name: {leaf.dtype for leaf in jax.tree.leaves(optax.tree.get(state, name))} for name in ("mu", "nu")}
    assert dtypes == {"mu": {jnp.dtype(jnp.bfloat16)}, "nu": {jnp.dtype(jnp.float32)}}


@pytest.mark.parametrize("field, value", [("learning_rate", -1.0), ("beta2", 1.0), ("clip_norm", float("nan"))])
def test_numbers_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(BadInput, match=f"config.{field}: is {value}; give"):
        OptimizerSettings(**{field: value})
