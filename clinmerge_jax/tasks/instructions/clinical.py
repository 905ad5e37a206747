"""The generated clinical set: checkable instructions on clinical inputs.

It measures what a merge is made for: clinical skill and instruction following together. Neither parent was trained on
it. An item has an input of a data set (a conversation or a question), the data set's own request in other words, and
one to three instructions that a good answer can follow. Its target holds the instructions and the data set's reference
answer, so that one answer gets two scores (`clinical_scores`).
"""

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

MIN_WORDS = 6  # the shortest reference used; "Noncontributory." has nothing to lay out
_TRIES = 500
_OF_TWO, _OF_THREE = 0.4, 0.8  # a random number in [0, 1) above these asks for two or three instructions
_LAYOUT = 0.3  # how often the first kind is drawn from the layouts alone, as fewer references allow these than the rest

# By data set and split; names in braces are fields of its items.
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


def clinical_items(dataset: str, sources: Sequence[Item], seed: int, count: int, split: str = "test") -> list[Item]:
    """Generate items by adding instructions to inputs.

    An item depends only on the seed, the split, its source and how often that source was used before. The shorter of
    two lists is the beginning of the longer one. Sources are ordered by a hash, and all are used once before any is
    used twice. No two kinds of instructions that are asked for together in "dev" are asked for together in "test".

    Args:
      dataset: "mts_dialog", "aci_bench" or "meqsum".
      sources: items of the data set; those whose reference has fewer than MIN_WORDS words are skipped.
      seed: seed of all random choices.
      count: number of items.
      split: "dev", on whose items settings may be chosen, or "test".

    Raises:
      BadInput: no reference is long enough, or a source allows no set of instructions.
    """
    fitting = [source for source in sources if len(words(source.target)) >= MIN_WORDS]
    if not fitting:
        raise BadInput(f"{dataset}: no reference has {MIN_WORDS} words; give items with longer ones")
    fitting.sort(key=lambda source: hashlib.sha256(f"{seed} {source.id}".encode()).digest())
    return [_make(dataset, fitting[n % len(fitting)], seed, n // len(fitting), split) for n in range(count)]


def _make(dataset: str, source: Item, seed: int, earlier: int, split: str) -> Item:
    rng = random.Random(f"clinical following {seed} {split} {source.id} {earlier}")
    kinds, case = kinds_of(split), Case(source.source, source.target, split)
    layouts = [kind for kind in kinds if kind.id in LAYOUTS]
    for _ in range(_TRIES):
        chance = rng.random()
        wanted = 1 + (chance > _OF_TWO) + (chance > _OF_THREE)
        first = pick(rng, layouts if rng.random() < _LAYOUT else kinds)
        drawn = draw_together(rng, first, kinds, wanted, case, functools.partial(_together, split))
        if drawn is None:
            continue
        fields = _fields(rng, dataset, source, split, drawn[1])
        asked = InstructionTarget("".join(fields.values()), drawn[0], source.target)
        trivial = any(all(strict(asked, text)) for text in (source.target, source.source))
        if not trivial and all(strict(asked, obey(source.target, asked))):
            return Item(
                id=f"{source.id}-{earlier}",
                name=source.name,
                fields=fields,
                source=source.source,
                target=asked,
                cluster=source.cluster or source.id,
            )
    raise BadInput(f"{source.name}: no set of instructions suits its reference; leave it out")


def _together(split: str, ids: Collection[str]) -> bool:
    """Whether the kinds are compatible and every pair of them belongs to this split; a hash assigns pairs to splits."""
    pairs = (" ".join(pair) for pair in itertools.combinations(sorted(ids), 2))
    own = {"dev": 0, "test": 1}[split]
    return compatible(ids) and all(hashlib.sha256(pair.encode()).digest()[0] % 2 == own for pair in pairs)


def _fields(rng: random.Random, dataset: str, source: Item, split: str, said: Sequence[str]) -> dict[str, str]:
    """The prompt in three parts, so that the input can be located and shortened; instructions precede or follow it."""
    request = pick(rng, _REQUESTS[dataset][split]).format(**source.fields)
    rules = " ".join(said)
    before, after = (f"{request} {rules}", "") if rng.random() < 0.5 else (request, f"\n\n{rules}")
    return {"before": f"{before}\n\n", "text": source.source, "after": after}
