"""Questions that are not read from published files as they are, but made by rules."""

import dataclasses
from collections.abc import Callable, Sequence

from clinmerge_jax.data.sets.files import Source
from clinmerge_jax.evaluation.tasks import following, miniature
from clinmerge_jax.evaluation.tasks.task import Item


@dataclasses.dataclass(frozen=True)
class Made:
    """A set of questions.

    Attributes:
      splits: that it has.
      items: from a split, and from where published files lie, to its items.
    """

    splits: Sequence[str]
    items: Callable[[str, Source], list[Item]]


MADE: dict[str, Made] = {
    miniature.NOTES.dataset: Made(("train", "test"), lambda split, source: miniature.notes(split)),
    miniature.CHAT.dataset: Made(("train", "test"), lambda split, source: miniature.chat(split)),
    **{
        name: Made(splits, lambda split, source, name=name: following.items_of(name, source, split))
        for name, splits in following.SPLITS.items()
    },
}
