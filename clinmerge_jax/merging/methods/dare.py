"""DARE (Yu et al. 2024, arXiv 2311.03099): drops entries of the changes at random and scales up the rest.

The paper scales by 1/density (our option inverse_density: true). mergekit's rescale, the default, restores the L1 norm
of each change instead. Masks are a hash of seed, tensor name, model, row and column, so they do not depend on pieces,
order, devices or restarts.
"""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from clinmerge_jax.merging.methods.common import TensorSpec
from clinmerge_jax.merging.methods.task_vectors import Sparsifier, check_density, make

_RANGE = 2**32


def mask_keys(spec: TensorSpec) -> np.ndarray:
    """The hash key of each model's mask, uint32 [N, 2]."""
    texts = [f"{spec.seed}/{spec.name}/{index}" for index in range(spec.models)]
    return np.stack([np.frombuffer(hashlib.sha256(text.encode()).digest()[:8], "<u4") for text in texts])


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of 32-bit words whose output bits each depend on all input bits (murmur3's finalizer)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def uniform_bits(shape: tuple[int, int], first_row: jax.Array, key_2: jax.Array) -> jax.Array:
    """uint32 [R, C], a function of key, row and column alone."""
    row = first_row.astype(jnp.uint32) + jax.lax.broadcasted_iota(jnp.uint32, (shape[0], 1), 0)
    column = jax.lax.broadcasted_iota(jnp.uint32, (1, shape[1]), 1)
    row_word = _mix(_mix(row ^ key_2[0]) + key_2[1])
    return _mix(_mix(column + row_word) ^ row_word)


@dataclasses.dataclass(frozen=True)
class Bernoulli(Sparsifier):
    """Keeps each entry with probability density."""

    def check(self, spec: TensorSpec) -> None:
        """See `Sparsifier.check`."""
        check_density(spec)

    def select(self, spec: TensorSpec):
        """See `Sparsifier.select`."""
        yield from ()
        densities = np.array(spec.each("density"))
        limits = np.clip(np.rint(densities * _RANGE) - 1, 0, _RANGE - 1).astype(np.uint32)
        return {"keys": mask_keys(spec), "limits": limits, "any": densities > 0.0}

    def keep(self, index, change, first_row, args, rank):
        """See `Sparsifier.keep`."""
        bits = uniform_bits(change.shape, first_row, args["keys"][index])
        return (bits <= args["limits"][index]) & args["any"][index]


_PARAMETERS = {"rescale": True, "inverse_density": False}
DARE_LINEAR = make("dare_linear", Bernoulli(), False, _PARAMETERS, random=True)
DARE_TIES = make("dare_ties", Bernoulli(), True, _PARAMETERS, random=True)
