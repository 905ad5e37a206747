"""A plain Optax training loop on one device: packed windows, AdamW, warm-up and cosine decay.

B batch, T tokens, N windows.
"""

import dataclasses
import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging

from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.model import forward
from clinmerge_jax.llama.parameters import Params

_LOG_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """How to train; AdamW as in Loshchilov and Hutter 2019 (arXiv 1711.05101)."""

    steps: int
    batch_size: int = 16
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-4
    warmup_steps: int = 20
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.98
    clip_norm: float = 1.0
    seed: int = 0


def optimizer(settings: TrainingSettings) -> optax.GradientTransformation:
    """AdamW with global-norm clipping; matrices are decayed, norms and biases are not."""
    warmup = min(settings.warmup_steps, settings.steps - 1)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, settings.learning_rate, warmup, settings.steps, settings.final_learning_rate
    )

    def is_matrix(params: Params) -> Params:
        return jax.tree_util.tree_map_with_path(lambda path, leaf: leaf.ndim - (path[0].key == "layers") >= 2, params)

    return optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.adamw(schedule, settings.beta1, settings.beta2, weight_decay=settings.weight_decay, mask=is_matrix),
    )


def target_loss(params: Params, tokens_BT: jax.Array, targets_BT: jax.Array, config: LlamaConfig) -> jax.Array:
    """Mean cross-entropy in nats over the target tokens; the windows hold one token more than is predicted."""
    logits = forward(params, tokens_BT[:, :-1], config)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), tokens_BT[:, 1:])
    scored = targets_BT[:, 1:]
    return jnp.sum(losses, where=scored) / jnp.maximum(jnp.sum(scored), 1).astype(losses.dtype)


@functools.partial(jax.jit, static_argnames=("config", "transformation"), donate_argnames=("params", "state"))
def _step(params, state, tokens_BT, targets_BT, config, transformation):
    loss, gradients = jax.value_and_grad(target_loss)(params, tokens_BT, targets_BT, config)
    updates, state = transformation.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, loss


def train(
    params: Params,
    config: LlamaConfig,
    windows: tuple[np.ndarray, np.ndarray],
    settings: TrainingSettings,
    progress: Callable[[int, float], None] = lambda step, loss: None,
) -> Params:
    """Trains for a number of steps; epochs are reshuffled from the seed.

    Args:
      params: float32 Params; they are donated.
      config: the architecture.
      windows: tokens [N, T + 1] and targets [N, T + 1], as `data.documents.pack` makes them.
      settings: steps, batch and optimiser.
      progress: called with each finished step and its loss.

    Returns:
      The trained Params.

    Raises:
      FloatingPointError: a loss is not finite.
    """
    tokens, targets = windows
    transformation = optimizer(settings)
    state = transformation.init(params)
    rng = np.random.default_rng(settings.seed)
    order = np.empty(0, np.int64)
    pending: tuple[int, jax.Array] | None = None
    logged = time.monotonic()

    def settle(step: int, loss: jax.Array) -> None:
        nonlocal logged
        value = float(loss)
        if not np.isfinite(value):
            raise FloatingPointError(f"the loss of step {step} is {value}; lower the learning rate")
        progress(step, value)
        if time.monotonic() - logged > _LOG_SECONDS or step == settings.steps:
            logging.info("step %d of %d, loss %.3f", step, settings.steps, value)
            logged = time.monotonic()

    for step in range(1, settings.steps + 1):
        while len(order) < settings.batch_size:
            order = np.concatenate([order, rng.permutation(len(tokens))])
        chosen, order = order[: settings.batch_size], order[settings.batch_size :]
        params, state, loss = _step(params, state, tokens[chosen], targets[chosen], config, transformation)
        if pending:  # the step before: reading its loss does not wait for the one just sent off
            settle(*pending)
        pending = (step, loss)
    settle(*pending)
    return params
