"""NearSwap (alchemonaut 2024): the second model where it is near the first, the first where it is far."""

import jax.numpy as jnp
import numpy as np

from clinmerge_jax.merging import exact
from clinmerge_jax.merging.methods.common import Base, Coefficients, Method, Reductions, TensorSpec

_NEAREST = 1e-6  # smaller distances count as this


class NearSwap(Method):
    """w W_1 + (1 - w) W_0 with w = t / |W_0 - W_1|, at most 1."""

    def check(self, spec: TensorSpec) -> None:
        """See `Method.check`."""
        if spec.values["t"] < 0:
            raise ValueError(f"t is {spec.values['t']}; it is a distance, give 0 or more")

    def reductions(self, spec: TensorSpec) -> Reductions:
        """See `Method.reductions`; no statistics are needed."""
        yield from ()
        return Coefficients({"t": np.float32(spec.values["t"])})

    def apply(self, pieces, first_row, args, row_args, dtype):
        """See `Method.apply`."""
        first, second = (piece.astype(jnp.float32) for piece in pieces)
        change = second - first
        share = args["t"] / jnp.maximum(jnp.abs(change), _NEAREST)
        near = first + exact.multiply(jnp.minimum(share, 1.0), change)
        return jnp.where(share >= 1.0, second, near).astype(dtype)


NEARSWAP = NearSwap("nearswap", Base.FIRST, (2, 2), {"t": None})
