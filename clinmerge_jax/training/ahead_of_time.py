"""Lower a training step for absent devices; `lower_step(...).compile()` reports its time and memory."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from clinmerge_jax.data.batch import Batch
from clinmerge_jax.parallel.layout import Layout
from clinmerge_jax.training.lora import init_adapter
from clinmerge_jax.training.optimizer import adamw
from clinmerge_jax.training.sharding import state_shardings, trained_shardings
from clinmerge_jax.training.step import StepSettings, init_state, train_step
from clinmerge_jax.training.weights import frozen_paths, split


def abstract_state(layout: Layout, settings: StepSettings, freeze: Sequence[str] = ()) -> tuple[Any, Any]:
    """A TrainState with float32 weights, and the frozen leaves, both as shapes and shardings only.

    Raises:
      BadInput: as `init_adapter` and `frozen_paths`.
    """
    if settings.lora is None:
        paths = frozen_paths(layout.config, freeze)
        trained, _ = split(layout.abstract_params(), layout.config, paths)
        _, frozen = split(layout.abstract_params(settings.dtype), layout.config, paths)
    else:
        trained = jax.eval_shape(lambda key: init_adapter(layout.config, settings.lora, key), jax.random.key(0))
        frozen = layout.abstract_params(settings.dtype)
    state = jax.eval_shape(lambda trained: init_state(trained, settings), trained)
    shardings = state_shardings(state, adamw(settings.optimizer), layout)
    return jax.tree.map(_placed, state, shardings), frozen


def _placed(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def lower_step(
    layout: Layout, settings: StepSettings, shape: tuple[int, int, int], freeze: Sequence[str] = ()
) -> jax.stages.Lowered:
    """Lowers the step for the devices of a layout without creating arrays.

    Args:
      layout: the model and its mesh, which may consist of abstract devices.
      settings: the step's settings.
      shape: the batch shape: micro-batches, rows per micro-batch over all devices, tokens per row.
      freeze: patterns as in `weights.frozen_paths`.

    Raises:
      BadInput: as `abstract_state`.
    """
    state, frozen = abstract_state(layout, settings, freeze)
    rows = layout.named(None, "batch", None)
    arrays = {
        name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=rows) for name in ("tokens", "positions", "segments")
    }
    batch = Batch(targets=jax.ShapeDtypeStruct(shape, bool, sharding=rows), **arrays)
    start = None
    if settings.lora is None and (settings.kl or settings.l2):
        narrow = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, settings.dtype), state.trained)
        start = jax.tree.map(_placed, narrow, trained_shardings(narrow, layout))
    return train_step.lower(state, frozen, batch, start, settings=settings, config=layout.config, layout=layout)
