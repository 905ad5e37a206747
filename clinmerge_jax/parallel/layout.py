"""Which mesh axis cuts which logical axis: one short table, and what follows from it for a model's arrays."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.parameters import Parameter, Params, build_params, parameters
from clinmerge_jax.parallel.mesh import MeshShape, build_mesh, pick_shape

# Logical axis to mesh axes. The layers stay whole: the scan over them takes one at a time.
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "embed": ("fsdp",),
    "head": (),
    "layers": (),
}

# What must divide evenly: whole heads, not the rows of their matrices. The vocabulary is padded instead.
_COUNTED = {
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "mlp": "intermediate_size",
    "embed": "hidden_size",
}


def partition_spec(*axes: str | None) -> PartitionSpec:
    """How an array with these logical axes is cut; None stands for an axis that stays whole.

    Raises:
      KeyError: no rule names an axis.
      ValueError: two axes ask for the same mesh axis.
    """
    cuts = [RULES[axis] if axis is not None else () for axis in axes]
    used = [mesh_axis for cut in cuts for mesh_axis in cut]
    if len(set(used)) != len(used):
        raise ValueError(f"axes {axes} ask for one mesh axis twice: {used}")
    return PartitionSpec(*(cut if len(cut) > 1 else cut[0] if cut else None for cut in cuts))


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the arrays of one model lie: hashable, so it can be a static argument of jit.

    Attributes:
      mesh: the devices.
      config: the model.

    Raises:
      BadInput: a mesh axis does not divide what it cuts (heads and key-value heads are cut between heads, never
        within one). The vocabulary alone is padded.
    """

    mesh: Mesh
    config: LlamaConfig

    def __post_init__(self):
        for mesh_axis, parts in self.mesh.shape.items():
            counts = {_COUNTED[axis]: self.parts(axis) for axis in _COUNTED if mesh_axis in RULES[axis]}
            odd = next((field for field, cuts in counts.items() if getattr(self.config, field) % cuts), None)
            if odd is not None:
                divisor = math.gcd(*(getattr(self.config, field) for field in counts))
                raise BadInput(
                    f"config.mesh.{mesh_axis}: {parts} does not divide the model's {odd} ({getattr(self.config, odd)});"
                    f" give a divisor of {divisor}, or 0 to have one picked"
                )

    def parts(self, axis: str) -> int:
        """How many parts a logical axis is cut into."""
        return math.prod(self.mesh.shape[mesh_axis] for mesh_axis in RULES[axis])

    @property
    def device(self) -> jax.Device:
        """The first of the mesh; the others are of its kind."""
        return self.mesh.devices.flat[0]

    @property
    def vocab_rows(self) -> int:
        """Rows of the embedding and the head: the vocabulary, padded to what its mesh axes divide."""
        parts = self.parts("vocab")
        return -(-self.config.vocab_size // parts) * parts

    def shape(self, row: Parameter) -> tuple[int, ...]:
        """The shape of a leaf of Params, with the padding."""
        sizes = zip(row.logical_axes(), row.stacked_shape(self.config))
        return tuple(self.vocab_rows if axis == "vocab" else size for axis, size in sizes)

    def named(self, *axes: str | None) -> NamedSharding:
        """The sharding of an array with these logical axes."""
        return NamedSharding(self.mesh, partition_spec(*axes))

    def sharding(self, row: Parameter) -> NamedSharding:
        """The sharding of a leaf of Params."""
        return self.named(*row.logical_axes())

    def shardings(self) -> Params:
        """The sharding of every leaf, Params-shaped."""
        return build_params(self.config, self.sharding)

    def abstract_params(self, dtype: Any = jnp.float32) -> Params:
        """Params of `jax.ShapeDtypeStruct`s with their shardings: nothing is allocated."""
        return build_params(
            self.config, lambda row: jax.ShapeDtypeStruct(self.shape(row), dtype, sharding=self.sharding(row))
        )

    def shard_shapes(self) -> dict[str, tuple[int, ...]]:
        """What one device holds of each leaf, by its path."""
        return {"/".join(row.path): self.sharding(row).shard_shape(self.shape(row)) for row in parameters(self.config)}

    def constrain(self, x: jax.Array, *axes: str | None) -> jax.Array:
        """Fixes how an intermediate value of a jitted function is cut."""
        return jax.lax.with_sharding_constraint(x, self.named(*axes))

    def map_shards(
        self, function: Callable[..., jax.Array], inputs: Sequence[Sequence[str | None]], output: Sequence[str | None]
    ) -> Callable[..., jax.Array]:
        """A function that runs on every device's shards of its inputs, with the logical axes of inputs and result."""
        specs = tuple(partition_spec(*axes) for axes in inputs)
        # Kernels do not say along which mesh axes their results vary, so that is not checked.
        return jax.shard_map(
            function, mesh=self.mesh, in_specs=specs, out_specs=partition_spec(*output), check_vma=False
        )

    def put(self, values: np.ndarray, *axes: str | None) -> jax.Array:
        """Places an array that every process holds whole; each takes its own shards of it."""
        return jax.make_array_from_callback(values.shape, self.named(*axes), lambda index: values[index])


@functools.lru_cache(maxsize=32)
def make_layout(config: LlamaConfig, wanted: MeshShape | None = None) -> Layout:
    """A layout over every device of every process; what was picked and why is logged once.

    Raises:
      BadInput: as `pick_shape` and `Layout`.
    """
    shape, reason = pick_shape(config, jax.device_count(), wanted)
    if shape.size > 1:
        logging.info("mesh %s: %s", shape, reason)
    return Layout(build_mesh(shape), config)


@functools.lru_cache(maxsize=8)
def one_device(config: LlamaConfig) -> Layout:
    """The layout on the first device of this process alone."""
    return Layout(build_mesh(MeshShape(1, 1, 1), jax.local_devices()[:1]), config)
