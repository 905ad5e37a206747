"""What a model is trained on at a time. B rows, T tokens."""

import dataclasses
import functools

import jax
import numpy as np


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["tokens", "targets", "positions", "segments"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows that hold one document or several each; arrays of [..., B, T], of NumPy or on devices.

    Attributes:
      tokens: ids, int32; 0 where a row is not full.
      targets: bool, which tokens are learned: each from what precedes it in its document. Never a document's first.
      positions: int32, where each token stands in its document, from 0.
      segments: int32, which document of its row each token belongs to, from 1; 0 where the row is not full.
    """

    tokens: np.ndarray | jax.Array
    targets: np.ndarray | jax.Array
    positions: np.ndarray | jax.Array
    segments: np.ndarray | jax.Array
