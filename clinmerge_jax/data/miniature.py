"""Text of the miniature world as Documents, for jobs and evaluations."""

from collections.abc import Sequence
from typing import Any

from clinmerge_jax.data.documents import Document
from clinmerge_jax.miniature import world


def corpus(name: str, seed: int, count: int, held_out: bool = False) -> list[Document]:
    """The documents of one corpus: "base", "clinical" or "instruct".

    Held-out text is disjoint from training text by construction, whatever the seeds (see `world`);
    the base corpus has none.

    Raises:
      ValueError: there is no such corpus, or no held-out part of it.
    """
    if name == "instruct":
        found: Sequence[Any] = world.conversations(seed, count, held_out)
        return [Document(f"{name} conversation {i}", messages=messages) for i, messages in enumerate(found)]
    if name == "clinical":
        texts = world.clinical_documents(seed, count, held_out)
    elif name == "base" and not held_out:
        texts = world.base_documents(seed, count)
    else:
        raise ValueError(f"there is no {'held-out ' * held_out}corpus {name!r}")
    return [Document(f"{name} document {i}", text=text) for i, text in enumerate(texts)]
