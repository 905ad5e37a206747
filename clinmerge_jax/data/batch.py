"""A batch of token rows for training.

B rows, T tokens.
"""

import dataclasses
import functools

import jax
import numpy as np


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["tokens", "targets", "positions", "segments"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows that hold one or several documents each; arrays of shape [..., B, T], NumPy or on devices.

    Attributes:
      tokens: token ids, int32; 0 in padding.
      targets: bool, which tokens are learned. Each is predicted from the tokens before it in its document, so a
        document's first token is never a target.
      positions: int32, the index of each token in its document, from 0.
      segments: int32, the number of each token's document within its row, from 1; 0 in padding.
    """

    tokens: np.ndarray | jax.Array
    targets: np.ndarray | jax.Array
    positions: np.ndarray | jax.Array
    segments: np.ndarray | jax.Array
