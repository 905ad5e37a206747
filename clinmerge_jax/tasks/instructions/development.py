"""A development set for instruction following: everyday requests with IFEval's kinds of instructions, in other words.

Coefficients and settings may be chosen on it; IFEval itself has nothing but a test.
"""

import random
import re

from clinmerge_jax.errors import BadInput
from clinmerge_jax.instructions.scores import strict
from clinmerge_jax.instructions.target import Instruction, InstructionTarget
from clinmerge_jax.seeded import pick, sample
from clinmerge_jax.tasks.instructions import topics
from clinmerge_jax.tasks.instructions.compliant import NOTHING, obey
from clinmerge_jax.tasks.instructions.everyday import KINDS
from clinmerge_jax.tasks.instructions.kinds import draw_together
from clinmerge_jax.tasks.task import Item

COUNT = 300
_TRIES = 100
_OF_TWO, _OF_THREE = 0.85, 0.5  # a number in [0, 1) above these asks for three or two instructions


def development_items(seed: int = 0, count: int = COUNT) -> list[Item]:
    """Everyday requests with one to three instructions, every kind in turn, each solvable by rules and not by saying
    anything.

    The first items of a longer set are the shorter set of the same seed.

    Raises:
      BadInput: an item cannot be made solvable.
    """
    return [_item(seed, number) for number in range(count)]


def _item(seed: int, number: int) -> Item:
    rng = random.Random(f"following development {seed} {number}")
    id_ = f"development-{seed}-{number}"
    kind = KINDS[number % len(KINDS)]
    for _ in range(_TRIES):
        request = _request(rng, kind.id)
        chance = rng.random()
        wanted = 1 + (chance > _OF_THREE) + (chance > _OF_TWO)
        instructions, said = draw_together(rng, kind, KINDS, wanted, request)
        asked = InstructionTarget(_prompt(rng, request, instructions, said), instructions)
        if all(strict(asked, obey(NOTHING, asked))) and not all(strict(asked, NOTHING)):
            return Item(id_, id_, {"prompt": asked.prompt}, source=asked.prompt, target=asked)
    raise BadInput(f"{id_}: no answer made by rules follows any set of instructions drawn; take another seed")


def _request(rng: random.Random, kind: str) -> str:
    templates = topics.QUESTIONS if kind == "detectable_format:constrained_response" else topics.REQUESTS
    first, second = sample(rng, topics.THINGS, 2)
    request = pick(rng, templates).format(
        thing=first,
        other=second,
        animal=pick(rng, topics.ANIMALS),
        place=pick(rng, topics.PLACES),
        pastime=pick(rng, topics.PASTIMES),
        dish=pick(rng, topics.DISHES),
        trade=pick(rng, topics.TRADES),
    )
    return re.sub(r"\ba (?=[aeiou])", "an ", request)


def _prompt(rng: random.Random, request: str, instructions: tuple[Instruction, ...], said: list[str]) -> str:
    """Request and instructions; what is to be repeated stands first, by itself."""
    repeated = any(instruction.id == "combination:repeat_prompt" for instruction in instructions)
    if repeated or rng.random() > 0.3:
        return "\n".join([request, *said]) if repeated or rng.random() > 0.5 else " ".join([request, *said])
    return "\n".join([*said, request])
