"""The device mesh: its three axes, picking its shape, building it.

`data` replicates the model, `fsdp` shards its parameters (ZeRO-3, Rajbhandari et al. 2020, arXiv 1910.02054), `tensor`
shards its matrices by heads and MLP width (Shoeybi et al. 2019, arXiv 1909.08053).
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.config import LlamaConfig

AXES = ("data", "fsdp", "tensor")
_MOST_TENSOR = 8  # on most machines a wider tensor axis extends beyond the fast links of one host


@dataclasses.dataclass(frozen=True)
class MeshShape:
    """The number of devices along each axis; 0 leaves an axis open for `pick_shape`."""

    data: int = 0
    fsdp: int = 0
    tensor: int = 0

    @property
    def size(self) -> int:
        """The number of devices."""
        return self.data * self.fsdp * self.tensor

    def __str__(self) -> str:
        return f"data {self.data} x fsdp {self.fsdp} x tensor {self.tensor}"


def pick_shape(config: LlamaConfig, devices: int, wanted: MeshShape | None = None) -> tuple[MeshShape, str]:
    """Picks the sizes of the open axes for a model and a number of devices.

    An open tensor axis gets the largest power of two, at most eight, that divides the devices left by the fixed axes,
    the heads, the key-value heads and the MLP width. An open fsdp axis gets the largest divisor of the devices then
    left that also divides the hidden size. An open data axis gets the rest.

    Args:
      config: the model.
      devices: the number of devices of all processes.
      wanted: the axes that the user fixed.

    Returns:
      The shape, and the reasons for it in one line.

    Raises:
      BadInput: no shape with the fixed axes uses each device exactly once.
    """
    wanted = wanted or MeshShape()
    for axis, size in dataclasses.asdict(wanted).items():
        if size < 0:
            raise BadInput(f"config.mesh.{axis}: is {size}; give a number of devices, or 0 to have it picked")
    fixed = math.prod(size for size in dataclasses.astuple(wanted) if size)
    open_axes = 0 in dataclasses.astuple(wanted)
    if devices % fixed or (fixed != devices and not open_axes):
        raise BadInput(
            f"config.mesh: {wanted} does not use each of {devices} devices once; give axes whose product"
            f" {'divides' if open_axes else 'is'} {devices}, or 0 to have one picked"
        )
    left, reasons = devices // fixed, []
    data, fsdp, tensor = dataclasses.astuple(wanted)
    if not tensor:
        limit = math.gcd(config.num_attention_heads, config.num_key_value_heads, config.intermediate_size)
        tensor = math.gcd(left, limit, _MOST_TENSOR)
        left //= tensor
        reasons.append(
            f"tensor {tensor} divides {config.num_attention_heads} heads, {config.num_key_value_heads} key-value heads"
            f" and MLP width {config.intermediate_size}"
        )
    if not fsdp:
        fsdp = math.gcd(left, config.hidden_size)
        left //= fsdp
        reasons.append(f"fsdp {fsdp} divides hidden size {config.hidden_size}")
    if not data:
        data, left = left, 1
        reasons.append(f"data {data} is the rest")
    if left != 1:
        found = MeshShape(data, fsdp, tensor)
        raise BadInput(
            f"config.mesh: {wanted} leaves the model {found}, {found.size} of {devices} devices, because its heads"
            f" ({config.num_attention_heads}, {config.num_key_value_heads} for keys), MLP width"
            f" {config.intermediate_size} and hidden size {config.hidden_size} allow no more; leave data at 0"
        )
    return MeshShape(data, fsdp, tensor), "; ".join(reasons) or "as the config says"


def build_mesh(shape: MeshShape, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds a mesh over the given devices, by default all devices of all processes.

    Args:
      shape: from `pick_shape`.
      devices: as many as the shape has.
    """
    devices = jax.devices() if devices is None else devices
    axis_types = (AxisType.Auto,) * len(AXES)  # XLA propagates shardings between those given explicitly
    return jax.make_mesh(dataclasses.astuple(shape), AXES, axis_types=axis_types, devices=devices)
