"""SCE (Wan et al. 2024, "FuseChat", arXiv 2408.07990): select by variance, calculate weights, erase minority signs.

The select_topk share of entries with the largest variance over the changes is kept (of those whose variance is not
zero); weights are proportional to mean(d_i^2) of what is kept; entries against the sign of the sum are erased.
"""

import jax
import jax.numpy as jnp
import numpy as np

from clinmerge_jax.merging import exact
from clinmerge_jax.merging.methods import order
from clinmerge_jax.merging.methods.common import (
    Base,
    Coefficients,
    Method,
    Reduction,
    Reductions,
    TensorSpec,
    deltas,
)
from clinmerge_jax.merging.methods.task_vectors import consensus

_NO_WEIGHT = 1e-6  # a smaller sum of the mean squares means equal weights


def _variances(pieces, first_row, args) -> list[jax.Array]:
    """The population variance over the models' changes, times their number, [R, C]."""
    changes = deltas(pieces)
    mean = sum(changes[1:], changes[0]) / np.float32(len(changes))
    squares = [exact.square(change - mean) for change in changes]
    return [sum(squares[1:], squares[0])]


def _not_zero(pieces, first_row, args) -> jax.Array:
    return jnp.sum(_variances(pieces, first_row, args)[0] > 0.0, axis=1, dtype=jnp.int32)[:, None]


def _kept(pieces, first_row, args) -> list[jax.Array]:
    changes = deltas(pieces)
    mask = order.selected(_variances(pieces, first_row, args)[0], first_row, args["selection"])
    return [jnp.where(mask, change, 0.0) for change in changes]


def _square_sums(pieces, first_row, args) -> jax.Array:
    return jnp.stack([exact.square_sum(change) for change in _kept(pieces, first_row, args)], axis=-1)


class Sce(Method):
    """See the module."""

    def check(self, spec: TensorSpec) -> None:
        """See `Method.check`."""
        share = spec.values["select_topk"]
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"select_topk is {share:g}; it is the share that is kept, give 0 to 1")

    def reductions(self, spec: TensorSpec) -> Reductions:
        """See `Method.reductions`."""
        share = spec.values["select_topk"]
        count = spec.size
        if share < 1.0:
            count = int(share * int((yield Reduction(_not_zero)).sum(dtype=np.int64)))
        (found,) = yield from order.largest(_variances, (0,), [count], spec.size, spec.columns)
        args = {"selection": found.as_array()}
        means = exact.total([(yield Reduction(_square_sums, args))]) / spec.size
        total = means.sum()
        weights = means / total if total >= _NO_WEIGHT else np.full(spec.models, 1.0 / spec.models)
        return Coefficients(
            {
                **args,
                "signs": exact.split_coefficients(np.ones(spec.models)),
                "flip": np.ones(spec.models, np.float32),
                "coefficients": exact.split_coefficients(weights),
                "weights": weights.astype(np.float32),
                "normalize": np.bool_(True),
            }
        )

    def apply(self, pieces, first_row, args, row_args, dtype):
        """See `Method.apply`."""
        return consensus(pieces, _kept(pieces, first_row, args), args, True, dtype)


SCE = Sce("sce", Base.REQUIRED, (1, None), {"select_topk": 1.0, "int8_mask": False})
