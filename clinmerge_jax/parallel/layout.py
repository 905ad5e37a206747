"""The table of the mesh axes that shard each logical axis, and the shardings of a model's arrays that follow."""

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

# Logical axis to mesh axes. The layer axis is not sharded: the scan takes one layer at a time.
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

# The fields of the config that must divide evenly: whole heads, not rows of matrices. The vocabulary is padded instead.
_COUNTED = {
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "mlp": "intermediate_size",
    "embed": "hidden_size",
}


def partition_spec(*axes: str | None) -> PartitionSpec:
    """The PartitionSpec of an array with these logical axes; None stands for an axis that is not sharded.

    Raises:
      KeyError: an axis has no rule.
      ValueError: two axes need the same mesh axis.
    """
    cuts = [RULES[axis] if axis is not None else () for axis in axes]
    used = [mesh_axis for cut in cuts for mesh_axis in cut]
    if len(set(used)) != len(used):
        raise ValueError(f"axes {axes} use one mesh axis twice: {used}")
    return PartitionSpec(*(cut if len(cut) > 1 else cut[0] if cut else None for cut in cuts))


@dataclasses.dataclass(frozen=True)
class Layout:
    """The shardings of one model's arrays. Hashable, so it can be a static argument of jit.

    Attributes:
      mesh: the devices.
      config: the model.

    Raises:
      BadInput: a mesh axis does not divide an axis that it shards (heads and key-value heads are sharded between heads,
        never within one). Only the vocabulary is padded.
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
        """The number of shards along a logical axis."""
        return math.prod(self.mesh.shape[mesh_axis] for mesh_axis in RULES[axis])

    @property
    def device(self) -> jax.Device:
        """The first device of the mesh; the others are of the same kind."""
        return self.mesh.devices.flat[0]

    @property
    def vocab_rows(self) -> int:
        """Rows of the embedding and the head: the vocabulary, padded to a multiple of its shards."""
        parts = self.parts("vocab")
        return -(-self.config.vocab_size // parts) * parts

    def shape(self, row: Parameter) -> tuple[int, ...]:
        """The shape of a leaf of Params, including padding."""
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
        """The shape of one device's shard of each leaf, by path."""
        return {"/".join(row.path): self.sharding(row).shard_shape(self.shape(row)) for row in parameters(self.config)}

    def constrain(self, x: jax.Array, *axes: str | None) -> jax.Array:
        """Fixes the sharding of an intermediate value in a jitted function."""
        return jax.lax.with_sharding_constraint(x, self.named(*axes))

    def map_shards(
        self, function: Callable[..., jax.Array], inputs: Sequence[Sequence[str | None]], output: Sequence[str | None]
    ) -> Callable[..., jax.Array]:
        """Makes a function run on every device's shards of its inputs; takes the logical axes of inputs and output."""
        specs = tuple(partition_spec(*axes) for axes in inputs)
        # Kernels do not declare the mesh axes along which their results vary, so that is not checked.
        return jax.shard_map(
            function, mesh=self.mesh, in_specs=specs, out_specs=partition_spec(*output), check_vma=False
        )

    def put(self, values: np.ndarray, *axes: str | None) -> jax.Array:
        """Places an array that every process holds in full; each process contributes its own shards."""
        return jax.make_array_from_callback(values.shape, self.named(*axes), lambda index: values[index])


@functools.lru_cache(maxsize=32)
def make_layout(config: LlamaConfig, wanted: MeshShape | None = None) -> Layout:
    """Makes a layout over all devices of all processes; logs the mesh shape once, with the reason for it.

    Raises:
      BadInput: as in `pick_shape` and `Layout`.
    """
    shape, reason = pick_shape(config, jax.device_count(), wanted)
    if shape.size > 1:
        logging.info("mesh %s: %s", shape, reason)
    return Layout(build_mesh(shape), config)


@functools.lru_cache(maxsize=8)
def one_device(config: LlamaConfig) -> Layout:
    """Makes a layout on the first device of this process alone."""
    return Layout(build_mesh(MeshShape(1, 1, 1), jax.local_devices()[:1]), config)
