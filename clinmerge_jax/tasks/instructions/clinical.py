"""Instructions that rules can check, put on clinical inputs: what a merge is for, and neither parent was trained on.

An item is an input of a data set (a conversation, a question), the data set's own request in other words, and one to
three instructions that a good answer can follow. Its target has the instructions and the data set's reference, so that
one answer gets two scores (`clinical_scores`).
"""

import dataclasses
import functools
import hashlib
import itertools
import random
from collections.abc import Collection, Sequence

from clinmerge_jax.errors import BadInput
from clinmerge_jax.instructions.counting import words
from clinmerge_jax.instructions.scores import strict
from clinmerge_jax.instructions.target import InstructionTarget
from clinmerge_jax.seeded import pick
from clinmerge_jax.tasks.instructions.clinical_kinds import Case, kinds_of
from clinmerge_jax.tasks.instructions.compliant import obey
from clinmerge_jax.tasks.instructions.kinds import LAYOUTS, compatible, draw_together
from clinmerge_jax.tasks.task import Item

MIN_WORDS = 6  # of a reference; "Noncontributory." leaves nothing to lay out
_TRIES = 500
_OF_TWO, _OF_THREE = 0.4, 0.8  # a number in [0, 1) above these asks for two or three instructions
_LAYOUT = 0.3  # how often the first instruction drawn is about the layout, which fewer references allow than the rest

# By data set and split, with fields of its items in braces.
_REQUESTS = {
    "mts_dialog": {
        "dev": ("Turn this consultation into the part of a clinical note that is headed {section_header}.",),
        "test": (
            "Summarize this conversation between doctor and patient as the section {section_header} of a note.",
            "From the conversation below write what belongs into the note under {section_header}.",
        ),
    },
    "aci_bench": {
        "dev": ("Turn this consultation into the doctor's complete note.",),
        "test": (
            "Write the clinical note of this visit.",
            "Below is the transcript of a visit. Document it as a full clinical note.",
        ),
    },
    "meqsum": {
        "dev": ("Reduce this message to the health question behind it.",),
        "test": (
            "Summarize what this person asks about health as a short question.",
            "Someone sent the message below. Restate its question in brief.",
        ),
    },
}


@dataclasses.dataclass(frozen=True)
class GeneratedItem:
    """An item and how it was come by.

    Attributes:
      item: as tasks have it.
      answer: made by rules from the reference; it follows all instructions.
      trivial: how many sets of instructions were refused before, as the reference or the input followed them as it is.
      unsolved: how many, as the answer made by rules did not follow them.
    """

    item: Item
    answer: str
    trivial: int
    unsolved: int


def clinical_items(dataset: str, sources: Sequence[Item], seed: int, count: int, split: str = "test") -> list[Item]:
    """The items of `make`."""
    return [made.item for made in make(dataset, sources, seed, count, split)]


def make(dataset: str, sources: Sequence[Item], seed: int, count: int, split: str = "test") -> list[GeneratedItem]:
    """Puts instructions on inputs.

    What an item asks depends on seed, split, its source and how often that was taken before, and on nothing else; the
    first items of a longer list are the shorter list. Sources are taken in an order by hash, all once before any twice.
    Two instructions that are asked for together in "dev" never are in "test".

    Args:
      dataset: "mts_dialog", "aci_bench" or "meqsum".
      sources: its items; those with references under MIN_WORDS words are passed over.
      seed: of all choices.
      count: of items.
      split: "dev", on whose items settings may be chosen, or "test".

    Raises:
      BadInput: no source is long enough, or one allows no set of instructions.
    """
    fitting = [source for source in sources if len(words(source.target)) >= MIN_WORDS]
    if not fitting:
        raise BadInput(f"{dataset}: no reference has {MIN_WORDS} words; give items with longer ones")
    fitting.sort(key=lambda source: hashlib.sha256(f"{seed} {source.id}".encode()).digest())
    return [_make(dataset, fitting[n % len(fitting)], seed, n // len(fitting), split) for n in range(count)]


def _make(dataset: str, source: Item, seed: int, earlier: int, split: str) -> GeneratedItem:
    rng = random.Random(f"clinical following {seed} {split} {source.id} {earlier}")
    kinds, case = kinds_of(split), Case(source.source, source.target, split)
    layouts = [kind for kind in kinds if kind.id in LAYOUTS]
    trivial = unsolved = 0
    for _ in range(_TRIES):
        chance = rng.random()
        wanted = 1 + (chance > _OF_TWO) + (chance > _OF_THREE)
        first = pick(rng, layouts if rng.random() < _LAYOUT else kinds)
        drawn = draw_together(rng, first, kinds, wanted, case, functools.partial(_together, split))
        if drawn is None:
            continue
        fields = _fields(rng, dataset, source, split, drawn[1])
        asked = InstructionTarget("".join(fields.values()), drawn[0], source.target)
        answer = obey(source.target, asked)
        if any(all(strict(asked, text)) for text in (source.target, source.source)):
            trivial += 1
        elif not all(strict(asked, answer)):
            unsolved += 1
        else:
            item = Item(
                id=f"{source.id}-{earlier}",
                name=source.name,
                fields=fields,
                source=source.source,
                target=asked,
                cluster=source.cluster or source.id,
            )
            return GeneratedItem(item, answer, trivial, unsolved)
    raise BadInput(f"{source.name}: no set of instructions suits its reference; leave it out")


def _together(split: str, ids: Collection[str]) -> bool:
    """Whether one answer can follow them and every two may be asked for in this split: a hash sorts pairs into two."""
    pairs = (" ".join(pair) for pair in itertools.combinations(sorted(ids), 2))
    own = {"dev": 0, "test": 1}[split]
    return compatible(ids) and all(hashlib.sha256(pair.encode()).digest()[0] % 2 == own for pair in pairs)


def _fields(rng: random.Random, dataset: str, source: Item, split: str, said: Sequence[str]) -> dict[str, str]:
    """The prompt in three parts, so that its text can be found and shortened: instructions stand before or after it."""
    request = pick(rng, _REQUESTS[dataset][split]).format(**source.fields)
    rules = " ".join(said)
    before, after = (f"{request} {rules}", "") if rng.random() < 0.5 else (request, f"\n\n{rules}")
    return {"before": f"{before}\n\n", "text": source.source, "after": after}
