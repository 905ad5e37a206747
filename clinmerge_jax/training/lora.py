"""LoRA adapters in training: initial factors, sharding axes, dropout keys, and merging into the weights.

L layers, R rank, I in, O out, B rows.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.lora import LoraSettings, build_adapter
from clinmerge_jax.llama.parameters import Parameter, Params, parameters


@functools.partial(jax.jit, static_argnames=("config", "lora"))
def init_adapter(config: LlamaConfig, lora: LoraSettings, key: jax.Array) -> dict[str, Any]:
    """Initialises an adapter as PEFT does.

    B is zero, so the adapter has no effect at first. A is uniform in +-1 / sqrt(I) (He et al. 2015 with a slope of
    sqrt(5), the default of torch's linear layers). The values of a layer do not depend on the other targets.

    Raises:
      BadInput: as `llama.lora.targeted_rows`.
    """
    order = {row.path: index for index, row in enumerate(parameters(config))}

    def leaves(row: Parameter) -> dict[str, jax.Array]:
        outputs, inputs = row.shape(config)
        layers, bound = config.num_hidden_layers, 1 / math.sqrt(inputs)
        row_key = jax.random.fold_in(key, order[row.path])
        a_LRI = jax.random.uniform(row_key, (layers, lora.rank, inputs), jnp.float32, -bound, bound)
        return {"lora_a": a_LRI, "lora_b": jnp.zeros((layers, outputs, lora.rank), jnp.float32)}

    return build_adapter(config, lora, leaves)


def adapter_axes(row: Parameter, leaf: str) -> tuple[str | None, ...]:
    """The logical axes of `lora_a` or `lora_b`: the rank is not sharded, the other axes are sharded as the weight's."""
    outputs, inputs = row.axes
    return ("layers", None, inputs) if leaf == "lora_a" else ("layers", outputs, None)


def dropout_keys(config: LlamaConfig, lora: LoraSettings, key: jax.Array, rows_B: jax.Array) -> dict[str, Any]:
    """The dropout keys of a step, [L, B] for each targeted module.

    Args:
      config, lora: the model and its adapter.
      key: the key of the step.
      rows_B: the row numbers in the step's whole batch, so the keys do not depend on its division into micro-batches.
    """
    order = {row.path: index for index, row in enumerate(parameters(config))}

    def leaves(row: Parameter) -> dict[str, jax.Array]:
        row_key = jax.random.fold_in(key, order[row.path])
        keys_L = jax.vmap(jax.random.fold_in, (None, 0))(row_key, jnp.arange(config.num_hidden_layers))
        fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
        return {"lora_keys": fold(keys_L, rows_B)}

    return build_adapter(config, lora, leaves)


def squared_change(adapter: Any, lora: LoraSettings) -> jax.Array:
    """The squared norm of scaling * B A over all layers, computed from R x R products only."""
    pairs = jax.tree.leaves(adapter, is_leaf=lambda node: isinstance(node, dict) and "lora_a" in node)

    def of_one(pair: dict[str, jax.Array]) -> jax.Array:
        inner = jnp.einsum("lri,lsi->lrs", pair["lora_a"], pair["lora_a"])
        return jnp.sum(inner * jnp.einsum("lor,los->lrs", pair["lora_b"], pair["lora_b"]))

    return lora.scaling**2 * sum(of_one(pair) for pair in pairs)


@functools.partial(jax.jit, static_argnames="lora")
def merge_lora(params: Params, adapter: Any, lora: LoraSettings) -> Params:
    """Merges the adapter into Params: adds scaling * B A in at least float32 and rounds once, layer by layer.

    Args:
      params: the weights in any floating dtype, which the result keeps.
      adapter: an adapter as from `init_adapter`, possibly trained.
      lora: the adapter's settings.
    """

    def merged(node: Any, change: Any) -> Any:
        if "lora_a" in change:
            return {**node, "weight": _add(node["weight"], change["lora_a"], change["lora_b"], lora.scaling)}
        return {**node, **{key: merged(node[key], below) for key, below in change.items()}}

    return merged(params, adapter)


def _add(weight_LOI: jax.Array, a_LRI: jax.Array, b_LOR: jax.Array, scaling: float) -> jax.Array:
    wide = np.promote_types(np.promote_types(weight_LOI.dtype, a_LRI.dtype), np.float32)

    def layer(leaves):
        weight_OI, a_RI, b_OR = (leaf.astype(wide) for leaf in leaves)
        product_OI = jnp.einsum("or,ri->oi", b_OR, a_RI, precision="highest")
        return (weight_OI + scaling * product_OI).astype(weight_LOI.dtype)

    return jax.lax.map(layer, (weight_LOI, a_LRI, b_LOR))
