"""AdamW with the schedules, gradient clipping and decay exclusions of common PyTorch training code."""

import dataclasses
import enum
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from clinmerge_jax.errors import BadInput

_NORM_MARGIN = 1e-6  # torch.nn.utils.clip_grad_norm_ adds it to the norm


class Schedule(enum.Enum):
    """The decay of the learning rate after the warm-up."""

    COSINE = "cosine"
    LINEAR = "linear"
    CONSTANT = "constant"


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101); hashable.

    Attributes:
      learning_rate: the peak learning rate, after the warm-up.
      final_share: the learning rate at the end, as a share of the peak.
      schedule: the decay between peak and end.
      warmup_steps: steps of a linear warm-up from 0; the very first step has rate 0.
      warmup_share: the warm-up as a share of all steps, rounded down; used if warmup_steps is 0.
      weight_decay: applied to matrices, including embedding, head and the factors of an adapter, but not to norms and
        biases (as in Hugging Face's Trainer).
      beta1, beta2, eps: Adam's parameters; eps is added to the root of the bias-corrected second moment.
      clip_norm: the maximum global norm of the gradients; 0 for no clipping.
      first_moment_dtype: None for the dtype of the weights. The second moment always has the weights' dtype: with beta2
        near 1 its changes are too small for bfloat16.

    Raises:
      BadInput: a number is out of range.
    """

    learning_rate: float = 1e-5
    final_share: float = 0.1
    schedule: Schedule = Schedule.COSINE
    warmup_steps: int = 0
    warmup_share: float = 0.0
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 1.0
    first_moment_dtype: Any = None

    def __post_init__(self):
        for field in ("learning_rate", "final_share", "warmup_steps", "weight_decay", "eps", "clip_norm"):
            if not 0 <= getattr(self, field) < float("inf"):
                raise BadInput(f"config.{field}: is {getattr(self, field)!r}; give 0 or more")
        for field in ("beta1", "beta2", "warmup_share"):
            if not 0 <= getattr(self, field) < 1:
                raise BadInput(f"config.{field}: is {getattr(self, field)!r}; give a number from 0 to below 1")


def rate_share(settings: OptimizerSettings, steps: int | jax.Array) -> Callable[[jax.Array], jax.Array]:
    """The schedule: a function from the number of steps already taken to a share of the peak learning rate.

    Args:
      settings: the schedule, its warm-up and its end.
      steps: the number of steps of the whole run, at which the schedule ends. It may be traced, so vmapped runs may
        differ in it; Optax's own schedules do not allow that.
    """
    warmup, final = settings.warmup_steps, settings.final_share
    if settings.warmup_share and not warmup:
        warmup = jnp.floor(settings.warmup_share * steps)
    falling = jnp.maximum(1, steps - warmup)

    def after(step: jax.Array) -> jax.Array:
        gone = jnp.clip(step / falling, 0, 1)
        if settings.schedule is Schedule.COSINE:
            return (1 - final) * (0.5 * (1 + jnp.cos(jnp.pi * gone))) + final
        if settings.schedule is Schedule.LINEAR:
            return (1 - final) * (1 - gone) + final
        return jnp.ones_like(gone)

    if isinstance(warmup, int) and not warmup:
        return after
    return lambda step: jnp.where(step < warmup, step / jnp.maximum(1, warmup), after(step - warmup))


def is_matrix(weights: Any) -> Any:
    """Which leaves of a Params-shaped tree are matrices, and not norms or biases."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaf.ndim - (path[0].key == "layers") >= 2, weights)


def clip_by_norm(limit: float) -> optax.GradientTransformation:
    """Scales gradients by limit / (norm + 1e-6) if that is under 1, like torch.nn.utils.clip_grad_norm_."""

    def update(gradients, state, params=None):
        share = jnp.minimum(1.0, limit / (optax.tree.norm(gradients) + _NORM_MARGIN))
        return jax.tree.map(lambda leaf: leaf * share.astype(leaf.dtype), gradients), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def adamw(settings: OptimizerSettings) -> optax.GradientTransformation:
    """AdamW without the learning rate: multiply its updates by minus the step's rate and add them to the weights."""
    return optax.chain(
        clip_by_norm(settings.clip_norm) if settings.clip_norm else optax.identity(),
        optax.scale_by_adam(settings.beta1, settings.beta2, settings.eps, mu_dtype=settings.first_moment_dtype),
        optax.add_decayed_weights(settings.weight_decay, is_matrix) if settings.weight_decay else optax.identity(),
    )
