"""Questions that are not read from published files as they are, but made by rules."""

import dataclasses
from collections.abc import Callable, Sequence

from clinmerge_jax.data.sets.files import Source
from clinmerge_jax.tasks import miniature
from clinmerge_jax.tasks.instructions import tasks as instruction_tasks
from clinmerge_jax.tasks.task import Item


@dataclasses.dataclass(frozen=True)
class GeneratedSet:
    """A set of questions.

    Attributes:
      splits: that it has.
      items: from a split, and from where published files lie, to its items.
    """

    splits: Sequence[str]
    items: Callable[[str, Source], list[Item]]


GENERATED_SETS: dict[str, GeneratedSet] = {
    miniature.NOTES.dataset: GeneratedSet(("train", "test"), lambda split, source: miniature.notes(split)),
    miniature.CHAT.dataset: GeneratedSet(("train", "test"), lambda split, source: miniature.chat(split)),
    **{
        name: GeneratedSet(splits, lambda split, source, name=name: instruction_tasks.items_of(name, source, split))
        for name, splits in instruction_tasks.SPLITS.items()
    },
}
