"""Shard the training state over a mesh like the weights."""

from typing import Any

import jax
import optax
from jax.sharding import NamedSharding

from clinmerge_jax.llama.parameters import Params, parameters
from clinmerge_jax.parallel.layout import Layout
from clinmerge_jax.training.lora import adapter_axes


def trained_shardings(trained: Params, layout: Layout) -> Params:
    """The sharding of every leaf of a part of Params or of an adapter, from the parameter table."""
    rows = {row.path: row for row in parameters(layout.config)}

    def sharding(path, _) -> NamedSharding:
        keys = tuple(part.key for part in path)
        if keys in rows:
            return layout.sharding(rows[keys])
        return layout.named(*adapter_axes(rows[(*keys[:-1], "weight")], keys[-1]))

    return jax.tree_util.tree_map_with_path(sharding, trained)


def cut(trained: Params, layout: Layout | None) -> Params:
    """Constrains the sharding of leaves in a jitted function; without a layout returns them unchanged."""
    if layout is None:
        return trained
    return jax.tree.map(jax.lax.with_sharding_constraint, trained, trained_shardings(trained, layout))


def state_shardings(state: Any, transformation: optax.GradientTransformation, layout: Layout) -> Any:
    """The sharding of every leaf of a TrainState: moments like their weights, scalars replicated.

    Args:
      state: the TrainState, or its shapes from `jax.eval_shape`.
      transformation: the optimizer that its `opt_state` belongs to.
      layout: the model's layout on the mesh.
    """
    whole = layout.named()
    of_trained = trained_shardings(state.trained, layout)
    of_moments = optax.tree_utils.tree_map_params(
        transformation, lambda _, sharding: sharding, state.opt_state, of_trained, transform_non_params=lambda _: whole
    )
    shardings = jax.tree.map(lambda _: whole, state)
    return type(state)(**{**vars(shardings), "trained": of_trained, "opt_state": of_moments})
