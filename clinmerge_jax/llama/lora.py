"""What a LoRA adapter adds to a linear layer (Hu et al. 2021, arXiv 2106.09685).

B batch, T tokens, I in, O out, R rank.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class LoraSettings:
    """An adapter; hashable, so it can be a static argument of jit.

    Attributes:
      rank: R of the factors A, [R, I], and B, [O, R].
      alpha: B A is scaled by alpha / rank.
      dropout: the share of entries of a layer's input that A does not see in a training step.
      targets: the linear layers that have one, by the last part of their names ("q_proj").
      rank_stabilized: the scale is alpha / sqrt(rank) instead (Kalajdzievski 2023, arXiv 2312.03732).
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    rank_stabilized: bool = False

    @property
    def scaling(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


def targeting(lora: LoraSettings | None, name: str) -> LoraSettings | None:
    """The adapter as far as the layer of this name is concerned: None where it has none."""
    return lora if lora is not None and name in lora.targets else None


def low_rank_product(
    x_BTI: jax.Array, a_RI: jax.Array, b_OR: jax.Array, lora: LoraSettings, keys_B: jax.Array | None
) -> jax.Array:
    """What the adapter adds to a layer's output, [B, T, O]: scaling * (dropout(x) A^T) B^T.

    Args:
      x_BTI: what goes into the layer.
      a_RI, b_OR: the factors.
      lora: the adapter.
      keys_B: a random key for each row, where there is dropout: a row's mask depends on its key alone.
    """
    if keys_B is not None:
        keep = 1.0 - lora.dropout
        kept_BTI = jax.vmap(lambda key: jax.random.bernoulli(key, keep, x_BTI.shape[1:]))(keys_B)
        x_BTI = jnp.where(kept_BTI, x_BTI / keep, 0)
    x_BTR = jnp.einsum("bti,ri->btr", x_BTI, a_RI)
    return lora.scaling * jnp.einsum("btr,or->bto", x_BTR, b_OR)
