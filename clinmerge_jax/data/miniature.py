"""Text of the miniature world as Documents, for jobs and evaluations."""

from collections.abc import Sequence
from typing import Any

from clinmerge_jax.data.documents import Document
from clinmerge_jax.miniature import world
from clinmerge_jax.miniature.facts import SPLITS, TRAIN


def corpus(name: str, seed: int, count: int, split: str = TRAIN) -> list[Document]:
    """The documents of one corpus: "copying", "base", "clinical" or "instruct".

    The combinations of one split occur in no other, whatever the seeds (see `world`); copying and base have training
    text alone.

    Raises:
      ValueError: there is no such corpus, or it has no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"there is no corpus {name!r} with a split {split!r}")
    if name == "instruct":
        found: Sequence[Any] = world.conversations(seed, count, split)
        return [Document(f"{name} conversation {i}", messages=messages) for i, messages in enumerate(found)]
    if name == "clinical":
        texts = world.clinical_documents(seed, count, split)
    elif name == "copying" and split == TRAIN:
        texts = world.copying_documents(seed, count)
    elif name == "base" and split == TRAIN:
        texts = world.base_documents(seed, count)
    else:
        raise ValueError(f"there is no corpus {name!r} with a split {split!r}")
    return [Document(f"{name} document {i}", text=text) for i, text in enumerate(texts)]
