"""Sampling: the next token of every row from its logits.

The order of operations is transformers': repetition penalty, temperature, top-k, top-p, min-p. The noise of a row's
draw depends only on its seed and position, not on the other rows.

S rows, V vocabulary.
"""

import dataclasses
import functools
import hashlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clinmerge_jax.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How one request's tokens are chosen.

    Attributes:
      temperature: 0 takes the most likely token (greedy); otherwise logits are divided by it.
      top_k: keeps only the `top_k` most likely tokens; 0 keeps all.
      top_p: keeps only the most likely tokens that together reach this probability (Holtzman et al. 2020, arXiv
        1904.09751).
      min_p: keeps only tokens with at least this share of the most likely token's probability (Nguyen et al. 2024,
        arXiv 2407.01082).
      repetition_penalty: divides positive logits of tokens that the row already contains, and multiplies negative ones
        (Keskar et al. 2019, arXiv 1909.05858); 1 for none.
      seed: the random seed.

    Raises:
      BadInput: a value is out of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self):
        ranges = {
            "temperature": (self.temperature >= 0, "0 or more"),
            "top_k": (self.top_k >= 0, "0 or more"),
            "top_p": (0 < self.top_p <= 1, "over 0, up to 1"),
            "min_p": (0 <= self.min_p <= 1, "0 to 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "over 0"),
        }
        for name, (fits, wanted) in ranges.items():
            value = getattr(self, name)
            if not fits or not math.isfinite(value):
                raise BadInput(f"config.{name}: is {value}; give {wanted}")

    @property
    def filters(self) -> bool:
        """Whether tokens are excluded by rank or probability; this needs a sort."""
        return self.temperature > 0 and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Settings:
    """The fields of `Sampling` of every row, [S] each."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    repetition_penalty: jax.Array
    seed: jax.Array

    @classmethod
    def of(cls, rows: list[Sampling]) -> "Settings":
        """Collects the settings of some rows in NumPy arrays."""

        def column(name: str, dtype: Any) -> np.ndarray:
            return np.array([getattr(row, name) for row in rows], dtype)

        return cls(
            column("temperature", np.float32),
            column("top_k", np.int32),
            column("top_p", np.float32),
            column("min_p", np.float32),
            column("repetition_penalty", np.float32),
            np.array([row.seed % 2**32 for row in rows], np.uint32),
        )


@dataclasses.dataclass(frozen=True)
class Kind:
    """The parts of sampling compiled into a program: greedy decoding has no draws, and without filters no sort."""

    draws: bool = False
    filters: bool = False
    penalties: bool = False

    @classmethod
    def of(cls, rows: list[Sampling]) -> "Kind":
        """Returns the kind that these rows need."""
        return cls(
            any(row.temperature > 0 for row in rows),
            any(row.filters for row in rows),
            any(row.repetition_penalty != 1 for row in rows),
        )


def penalize(logits_SV: jax.Array, seen_SV: jax.Array, penalty_S: jax.Array) -> jax.Array:
    """Applies the repetition penalty to the logits of tokens in `seen_SV`."""
    penalty_S1 = penalty_S[:, None]
    lowered = jnp.where(logits_SV > 0, logits_SV / penalty_S1, logits_SV * penalty_S1)
    return jnp.where(seen_SV, lowered, logits_SV)


def keep_likely(logits_SV: jax.Array, settings: Settings) -> jax.Array:
    """Sets logits that top-k, top-p and min-p exclude to -inf; among equal logits the lower id ranks first."""
    order_SV = jnp.argsort(-logits_SV, axis=-1, stable=True)
    sorted_SV = jnp.take_along_axis(logits_SV, order_SV, axis=-1)
    rank_V = jnp.arange(logits_SV.shape[-1])
    top_k_S1 = jnp.where(settings.top_k > 0, settings.top_k, logits_SV.shape[-1])[:, None]
    sorted_SV = jnp.where(rank_V < top_k_S1, sorted_SV, -jnp.inf)
    probability_SV = jax.nn.softmax(sorted_SV, axis=-1)
    before_SV = jnp.cumsum(probability_SV, axis=-1) - probability_SV
    kept_SV = (before_SV < settings.top_p[:, None]) & (rank_V < top_k_S1)
    kept_SV &= probability_SV >= settings.min_p[:, None] * probability_SV[:, :1]
    kept_SV = kept_SV.at[:, 0].set(True)
    rows_S1 = jnp.arange(logits_SV.shape[0])[:, None]
    kept_SV = jnp.zeros_like(kept_SV).at[rows_S1, order_SV].set(kept_SV)
    return jnp.where(kept_SV, logits_SV, -jnp.inf)


def choose(
    logits_SV: jax.Array, settings: Settings, seen_SV: jax.Array | None, positions_S: jax.Array, kind: Kind
) -> jax.Array:
    """Chooses the next token of every row, int32 [S].

    Args:
      logits_SV: the logits, float32.
      settings: the settings of the rows.
      seen_SV: which tokens a row contains; may be None if no row has a repetition penalty.
      positions_S: the position that the token will have in its row.
      kind: the kind that the rows need; static.
    """
    if kind.penalties:
        logits_SV = penalize(logits_SV, seen_SV, settings.repetition_penalty)
    likeliest_S = jnp.argmax(logits_SV, axis=-1).astype(jnp.int32)
    if not kind.draws:
        return likeliest_S
    greedy_S = settings.temperature == 0
    scaled_SV = logits_SV / jnp.where(greedy_S, 1.0, settings.temperature)[:, None]
    if kind.filters:
        scaled_SV = keep_likely(scaled_SV, settings)

    def noise(seed: jax.Array, position: jax.Array) -> jax.Array:
        return jax.random.gumbel(jax.random.fold_in(jax.random.key(seed), position), scaled_SV.shape[1:], jnp.float32)

    drawn_SV = scaled_SV + jax.vmap(noise)(settings.seed, positions_S)
    return jnp.where(greedy_S, likeliest_S, jnp.argmax(drawn_SV, axis=-1).astype(jnp.int32))


def seed_of(seed: int, name: object) -> int:
    """The sampling seed of one request, from the run's seed and the request's name: not from its place in the queue."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4], "little")
