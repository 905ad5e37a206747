"""LoRA adapters in linear layers (Hu et al. 2021, arXiv 2106.09685).

B batch, T tokens, L layers, I in, O out, R rank.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.parameters import Parameter, parameters


@dataclasses.dataclass(frozen=True)
class LoraSettings:
    """The settings of an adapter. Hashable, so they can be a static argument of jit.

    Attributes:
      rank: R, the rank of the factors A, [R, I], and B, [O, R].
      alpha: B A is scaled by alpha / rank.
      dropout: the probability with which an entry of the input to A is zeroed in a training step.
      targets: the linear layers that have an adapter, by the last part of their names ("q_proj").
      rank_stabilized: whether the scale is alpha / sqrt(rank) instead (Kalajdzievski 2023, arXiv 2312.03732).
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    rank_stabilized: bool = False

    @property
    def scaling(self) -> float:
        """The factor of B A."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


def targeting(lora: LoraSettings | None, name: str) -> LoraSettings | None:
    """Returns the adapter if it targets the layer of this name, else None."""
    return lora if lora is not None and name in lora.targets else None


def targeted_rows(config: LlamaConfig, lora: LoraSettings) -> list[Parameter]:
    """Returns the rows of the parameter table that an adapter changes.

    Raises:
      BadInput: rank, alpha or dropout is out of range, or a target is not a linear layer of the model.
    """
    if lora.rank < 1:
        raise BadInput(f"config.lora.rank: is {lora.rank}; give 1 or more")
    if not 0 < lora.alpha < math.inf:
        raise BadInput(f"config.lora.alpha: is {lora.alpha}; give a positive number")
    if not 0 <= lora.dropout < 1:
        raise BadInput(f"config.lora.dropout: is {lora.dropout}; give a share from 0 to below 1")
    linear = {row.path[-2]: row for row in parameters(config) if row.stacked and len(row.axes) == 2}
    unknown = [name for name in lora.targets if name not in linear]
    if unknown or not lora.targets:
        problem = f"{unknown[0]!r} is not a linear layer of this model" if unknown else "names no layer"
        raise BadInput(f"config.lora.targets: {problem}; choose from {', '.join(linear)}")
    return [row for name, row in linear.items() if name in lora.targets]


def build_adapter(config: LlamaConfig, lora: LoraSettings, leaves: Callable[[Parameter], dict[str, Any]]) -> Any:
    """Builds a tree like Params with the entries of `leaves(row)` where each targeted weight would be.

    In an adapter these are `lora_a` [L, R, I] and `lora_b` [L, O, R], with all layers stacked.

    Raises:
      BadInput: as in `targeted_rows`.
    """
    tree: dict[str, Any] = {}
    for row in targeted_rows(config, lora):
        node = tree
        for key in row.path[:-1]:
            node = node.setdefault(key, {})
        node.update(leaves(row))
    return tree


def low_rank_product(
    x_BTI: jax.Array, a_RI: jax.Array, b_OR: jax.Array, lora: LoraSettings, keys_B: jax.Array | None
) -> jax.Array:
    """Computes the adapter's contribution to a layer's output, [B, T, O]: scaling * (dropout(x) A^T) B^T.

    Args:
      x_BTI: the layer's input.
      a_RI, b_OR: the factors.
      lora: the adapter.
      keys_B: a random key for each row, or None without dropout. A row's mask depends only on its key.
    """
    if keys_B is not None:
        keep = 1.0 - lora.dropout
        kept_BTI = jax.vmap(lambda key: jax.random.bernoulli(key, keep, x_BTI.shape[1:]))(keys_B)
        x_BTI = jnp.where(kept_BTI, x_BTI / keep, 0)
    x_BTR = jnp.einsum("bti,ri->btr", x_BTI, a_RI)
    return lora.scaling * jnp.einsum("btr,or->bto", x_BTR, b_OR)
