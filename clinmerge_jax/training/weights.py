"""Split Params into trained and frozen leaves, join them again, and interpolate between two trees."""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.parameters import Params, iterate_params, parameters


def frozen_paths(config: LlamaConfig, patterns: Sequence[str]) -> frozenset[tuple[str, ...]]:
    """The paths of the leaves of Params that are not trained.

    Args:
      config: the architecture.
      patterns: regular expressions; a tensor is frozen if one of them matches part of its Hugging Face name.

    Raises:
      BadInput: a pattern is not a regular expression, matches nothing or only some layers of a parameter, or nothing
        would be left to train.
    """
    frozen = set()
    rows = parameters(config)
    for pattern in patterns:
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise BadInput(f"config.freeze: {pattern!r} is not a regular expression ({error}); correct it") from error
        found = {row: [name for name in row.names(config) if expression.search(name)] for row in rows}
        for row, names in found.items():
            if 0 < len(names) < len(row.names(config)):
                raise BadInput(
                    f"config.freeze: {pattern!r} matches {names[0]} but not every layer's; a parameter's layers are"
                    " frozen together, leave out the number"
                )
        fits = {row.path for row, names in found.items() if names}
        if not fits:
            raise BadInput(
                f"config.freeze: {pattern!r} matches no tensor; names are such as {rows[1].names(config)[0]}"
            )
        frozen |= fits
    if len(frozen) == len(rows):
        raise BadInput("config.freeze: every tensor is frozen; leave some to train")
    return frozenset(frozen)


def split(params: Params, config: LlamaConfig, frozen: frozenset[tuple[str, ...]]) -> tuple[Params, Params]:
    """Splits Params into a tree of trained leaves and a tree of frozen leaves."""
    halves: tuple[Params, Params] = ({}, {})
    for row, leaf in iterate_params(params, config):
        node = halves[row.path in frozen]
        for key in row.path[:-1]:
            node = node.setdefault(key, {})
        node[row.path[-1]] = leaf
    return halves


def join(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, Any]:
    """Joins two trees without common leaves."""
    shared = {key: join(left[key], right[key]) for key in left if key in right}
    return {**left, **right, **shared}


@functools.partial(jax.jit, static_argnames="dtype")
def interpolate(start: Params, trained: Params, alpha: float | jax.Array, dtype: Any = None) -> Params:
    """(1 - alpha) start + alpha trained (WiSE-FT, Wortsman et al. 2021, arXiv 2109.01903, equation 1).

    Computed in at least float32 and rounded once.

    Args:
      start, trained: trees of the same shapes.
      alpha: 0 gives the start and 1 the trained weights, both exactly.
      dtype: the dtype of the result; None for that of the start's leaves.
    """

    def between(first: jax.Array, second: jax.Array) -> jax.Array:
        wide = np.promote_types(np.promote_types(first.dtype, second.dtype), np.float32)
        share = jnp.asarray(alpha, wide)
        mixed = (1 - share) * first.astype(wide) + share * second.astype(wide)
        return mixed.astype(dtype or first.dtype)

    return jax.tree.map(between, start, trained)
