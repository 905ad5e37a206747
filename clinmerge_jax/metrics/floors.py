"""Answers scored beside those of models: trivial baselines made without a model, and the reference as a ceiling."""

import re
from collections.abc import Hashable, Sequence

import numpy as np

from clinmerge_jax.errors import BadInput
from clinmerge_jax.metrics.metric import Output

LEAD_SENTENCES = 3
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


def another_target(targets: Sequence[str], clusters: Sequence[Hashable], seed: int = 0) -> list[Output]:
    """The target of another item of the same set, drawn at random from other clusters (encounters).

    Raises:
      BadInput: all items belong to one cluster.
    """
    if len(set(clusters)) < 2:
        raise BadInput(
            "clusters: all items are in one cluster; taking the target of another cluster needs at least two"
        )
    rng = np.random.default_rng(seed)
    outputs = []
    for own in clusters:
        while clusters[other := int(rng.integers(len(targets)))] == own:
            pass
        outputs.append(Output(targets[other]))
    return outputs


def lead(inputs: Sequence[str], sentences: int = LEAD_SENTENCES) -> list[Output]:
    """The first sentences of the input; the end of a line also ends a sentence."""
    return [Output(" ".join([s for s in _SENTENCE_END.split(text) if s.strip()][:sentences])) for text in inputs]
