"""AdamW with the schedule, the clipping and the exclusions that PyTorch training code uses."""

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
    """How the learning rate falls after the warm-up."""

    COSINE = "cosine"
    LINEAR = "linear"
    CONSTANT = "constant"


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101); hashable.

    Attributes:
      learning_rate: the highest, after the warm-up.
      final_share: the share of it that is left at the end.
      schedule: how it gets there.
      warmup_steps: steps of a linear rise from 0, which is the rate of the very first step.
      warmup_share: where warmup_steps is 0, how many of all steps they are, rounded down.
      weight_decay: of matrices, embedding and head among them; norms and biases are not decayed (as in Hugging Face's
        Trainer). The factors of an adapter are matrices.
      beta1, beta2, eps: of Adam; eps is added to the root of the corrected second moment.
      clip_norm: the largest norm of all gradients together; 0 for any.
      first_moment_dtype: None for that of the weights. The second moment always has the weights' dtype: at a beta2 near
        1 its changes are too small for bfloat16.

    Raises:
      BadInput: a number is out of its range.
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
                raise BadInput(f"optimizer.{field}: is {getattr(self, field)!r}; give 0 or more")
        for field in ("beta1", "beta2", "warmup_share"):
            if not 0 <= getattr(self, field) < 1:
                raise BadInput(f"optimizer.{field}: is {getattr(self, field)!r}; give a number from 0 to below 1")


def rate_share(settings: OptimizerSettings, steps: int | jax.Array) -> Callable[[jax.Array], jax.Array]:
    """The share of the learning rate that a step has, from the number of steps before it.

    Args:
      settings: the schedule, its warm-up and its end.
      steps: of the whole run; the end of the schedule. It may be traced: runs that are mapped over may differ in it, as
        Optax's own schedules do not let them.
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
    """Which leaves of a Params-shaped tree are matrices of the model: norms and biases are not."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaf.ndim - (path[0].key == "layers") >= 2, weights)


def clip_by_norm(limit: float) -> optax.GradientTransformation:
    """Scales gradients by limit / (norm + 1e-6) where that is under 1, as torch.nn.utils.clip_grad_norm_ does."""

    def update(gradients, state, params=None):
        share = jnp.minimum(1.0, limit / (optax.tree.norm(gradients) + _NORM_MARGIN))
        return jax.tree.map(lambda leaf: leaf * share.astype(leaf.dtype), gradients), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def adamw(settings: OptimizerSettings) -> optax.GradientTransformation:
    """From gradients to the change of the weights at a learning rate of -1: multiply it by minus the step's rate."""
    return optax.chain(
        clip_by_norm(settings.clip_norm) if settings.clip_norm else optax.identity(),
        optax.scale_by_adam(settings.beta1, settings.beta2, settings.eps, mu_dtype=settings.first_moment_dtype),
        optax.add_decayed_weights(settings.weight_decay, is_matrix) if settings.weight_decay else optax.identity(),
    )
