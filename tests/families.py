"""A base, two models trained from it and a stranger, for tests of what models have in common."""

import math

import numpy as np
from support import TINY, llama_tensors, write_llama

from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.merging.inspection.inspection import common_tensors, inspect_tensors

WIDE = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": 40}
CONFIG = {**TINY, **WIDE}


def changed(tensors, seed, scale):
    """The tensors with a random change of each entry."""
    noise = llama_tensors(CONFIG, seed, np.float32)
    return {name: (values + np.float32(scale) * noise[name]).astype(np.float32) for name, values in tensors.items()}


def opened(folder, dtype=np.float32, **models):
    """Checkpoints by role with these tensors."""
    for role, tensors in models.items():
        tensors = {name: values.astype(dtype) for name, values in tensors.items()}
        write_llama(folder / role, dtype=dtype, tensors=tensors, **WIDE)
    return {role: open_checkpoint(str(folder / role), f"config.{role}") for role in models}


def inspected(models, top=5.0, **sizes):
    """The figures of all common tensors."""
    return inspect_tensors(models, common_tensors(models)[0], top, **sizes)[0]


BASE = llama_tensors(CONFIG, 0, np.float32)
INSTRUCT = changed(BASE, 1, 0.2)
CLINICAL = changed(BASE, 2, 0.3)
UNRELATED = llama_tensors(CONFIG, 9, np.float32)


def cosine(x, y):
    return float((x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum()))


def reference(one, other, top):
    """Relative distance of `one` from `other`, cosine, and the share of the top entries, in float64."""
    one, other = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    squares = np.sort((one - other) ** 2)[::-1]
    k = max(1, round(one.size * top / 100))
    distance = math.sqrt(squares.sum() / (other * other).sum())
    return distance, cosine(one, other), float(squares[:k].sum() / squares.sum())
