"""The development set for instruction following: everyday requests with IFEval's kinds of instructions, worded anew.

Merge coefficients and settings may be chosen on it, because IFEval has a test set only.
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
_OF_TWO, _OF_THREE = 0.5, 0.85  # a random number in [0, 1) above these asks for two or three instructions


def development_items(seed: int = 0, count: int = COUNT) -> list[Item]:
    """Generate everyday requests with one to three instructions, taking the kinds in turn.

    For each item an answer made by rules follows all instructions, and an answer that ignores them does not. With the
    same seed, the shorter of two sets is the beginning of the longer one.

    Raises:
      BadInput: no solvable set of instructions was found for an item.
    """
    return [_item(seed, number) for number in range(count)]


def _item(seed: int, number: int) -> Item:
    rng = random.Random(f"following development {seed} {number}")
    id_ = f"development-{seed}-{number}"
    kind = KINDS[number % len(KINDS)]
    for _ in range(_TRIES):
        request = _request(rng, kind.id)
        chance = rng.random()
        wanted = 1 + (chance > _OF_TWO) + (chance > _OF_THREE)
        instructions, said = draw_together(rng, kind, KINDS, wanted, request)
        asked = InstructionTarget(_prompt(rng, request, instructions, said), instructions)
        if all(strict(asked, obey(NOTHING, asked))) and not all(strict(asked, NOTHING)):
            return Item(id_, id_, {"prompt": asked.prompt}, source=asked.prompt, target=asked)
    raise BadInput(f"{id_}: no answer made by rules follows any of the sets of instructions drawn; choose another seed")


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
    """The request and the instructions; a request that is to be repeated stands first, on its own line."""
    repeated = any(instruction.id == "combination:repeat_prompt" for instruction in instructions)
    if repeated or rng.random() > 0.3:
        return "\n".join([request, *said]) if repeated or rng.random() > 0.5 else " ".join([request, *said])
    return "\n".join([*said, request])
