"""What an answer was asked to obey."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction that a rule can check.

    Attributes:
      id: the kind, such as "keywords:existence": a name in `checkers.CHECKERS`, `notes.CLINICAL` or `ifbench.IFBENCH`.
      kwargs: what the kind leaves open, by the names of its checker's arguments.
    """

    id: str
    kwargs: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class InstructionTarget:
    """What an item of an instruction task has for its `target`, and what its metrics take as reference.

    Attributes:
      prompt: as the model got it.
      instructions: all that the prompt asks for and that is checked.
      reference: a text that the answer's content is compared with; "" where there is none.
    """

    prompt: str
    instructions: tuple[Instruction, ...]
    reference: str = ""
