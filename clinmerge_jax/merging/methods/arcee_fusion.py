"""Arcee Fusion (Arcee AI 2024, mergekit): keeps the second model's change where it is important.

Importance is |W_1 - W_0| times its row's Kullback-Leibler divergence of softmax(W_1) from softmax(W_0); the change is
kept where importance reaches its median plus 1.5 times its interquartile range. Two nearly equal softmaxes have a
divergence far below float32's rounding error of either, so it is summed from terms that are small themselves:
sum Q f(P / Q) with f(r) = r log r - r + 1. Quantiles are exact over all entries, whatever the size.
"""

import jax
import jax.numpy as jnp
import numpy as np

from clinmerge_jax.merging import exact
from clinmerge_jax.merging.methods.common import (
    Base,
    Coefficients,
    Method,
    Reduction,
    Reductions,
    TensorSpec,
)
from clinmerge_jax.merging.methods.order import kth_largest

_FLOOR = 1e-8  # added to every probability
_SPREAD = 1.5


def _divergence(pieces, first_row, args) -> jax.Array:
    """The divergence of each row, [R, 1]."""
    base, model = (piece.astype(jnp.float32) for piece in pieces)
    weight = jnp.exp(base - jnp.max(base, axis=1, keepdims=True))
    growth = jnp.expm1(model - base)
    total = exact.row_sums(weight)[:, None]
    grown = exact.row_sums(exact.multiply(weight, growth))[:, None] / total  # sum p_model / p_base - 1, weighted
    q = weight / total
    # p / q - 1 = (1 + growth) / (1 + grown) - 1
    relative = (growth - grown) / (1.0 + grown)
    floored = q + _FLOOR
    r = exact.multiply(q, relative) / floored  # P / Q - 1, floors included
    exact_form = exact.multiply(1.0 + r, jnp.log1p(r)) - r
    series = exact.multiply(exact.multiply(r, r), 0.5 - r / 6.0 + exact.multiply(r, r) / 12.0)
    terms = exact.multiply(floored, jnp.where(jnp.abs(r) < 1e-2, series, exact_form))
    return exact.row_sums(terms)[:, None]


def _importance(pieces, first_row, args) -> list[jax.Array]:
    """|W_1 - W_0| times the row's divergence, [R, C]; `args` has the divergences of all rows."""
    rows = first_row + jax.lax.broadcasted_iota(jnp.int32, (pieces[0].shape[0], 1), 0).astype(first_row.dtype)
    known = args["divergence"]
    return [_weigh(pieces, known[jnp.minimum(rows[:, 0], known.shape[0] - 1)])]  # a shard may be padded with rows


def _weigh(pieces, divergence_R1) -> jax.Array:
    base, model = (piece.astype(jnp.float32) for piece in pieces)
    return jnp.abs(model - base) * jnp.maximum(divergence_R1, 0.0)


class ArceeFusion(Method):
    """See the module."""

    def reductions(self, spec: TensorSpec) -> Reductions:
        """See `Method.reductions`."""
        divergence = yield Reduction(_divergence)
        # Position int(p (n - 1)) in ascending order.
        ks = [spec.size - int(p * (spec.size - 1)) for p in (0.5, 0.25, 0.75)]
        found = yield from kth_largest(_importance, (0, 0, 0), ks, {"divergence": divergence})
        median, low, high = np.array([one.bits for one in found], np.uint32).view(np.float32).astype(np.float64)
        threshold = np.float32(median + _SPREAD * (high - low))
        return Coefficients({"threshold": threshold}, {"divergence": divergence})

    def apply(self, pieces, first_row, args, row_args, dtype):
        """See `Method.apply`."""
        keep = _weigh(pieces, row_args["divergence"]) >= args["threshold"]
        return jnp.where(keep, pieces[1].astype(jnp.float32), pieces[0].astype(jnp.float32)).astype(dtype)


ARCEE_FUSION = ArceeFusion("arcee_fusion", Base.FIRST, (2, 2))
