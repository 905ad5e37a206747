"""Batches of documents, and the step as they are given to it, that the tests of training share."""

import jax
import numpy as np

from clinmerge_jax.data.batch import Batch
from clinmerge_jax.training.step import step

# Not donated, as tests look at the state before the step too; compiled in half the time to run a little slower.
take_step = jax.jit(
    step,
    static_argnames=("settings", "config", "layout"),
    compiler_options={"xla_backend_optimization_level": 0},
)

Document = tuple[np.ndarray, np.ndarray]  # tokens, targets


def draw_documents(count: int, vocabulary: int, longest: int, seed: int = 0) -> list[Document]:
    """Documents of 4 tokens or more that climb through the vocabulary, of which the first few are not learned."""
    rng = np.random.default_rng(seed)
    found = []
    for length in rng.integers(4, longest + 1, count):
        tokens = (np.cumsum(rng.integers(1, 4, length)) + rng.integers(vocabulary)) % vocabulary
        found.append((tokens.astype(np.int32), np.arange(length) >= rng.integers(1, 4)))
    return found


def make_batch(rows: list[list[Document]], length: int, shape: tuple[int, ...]) -> Batch:
    """A batch whose rows hold these documents one behind the other, with the given axes before that of the tokens."""
    arrays = {name: np.zeros((len(rows), length), np.int32) for name in ("tokens", "positions", "segments")}
    targets = np.zeros((len(rows), length), bool)
    for index, row in enumerate(rows):
        begin = 0
        for number, (tokens, learned) in enumerate(row, start=1):
            place = (index, slice(begin, begin + len(tokens)))
            arrays["tokens"][place], targets[place] = tokens, learned
            arrays["positions"][place], arrays["segments"][place] = np.arange(len(tokens)), number
            begin += len(tokens)
    arrays = {name: values.reshape(*shape, length) for name, values in arrays.items()}
    return Batch(targets=targets.reshape(*shape, length), **arrays)
