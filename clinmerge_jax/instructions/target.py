"""The instructions that an answer is checked against."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction that a rule can check.

    Attributes:
      id: its kind, such as "keywords:existence": a key of `checkers.CHECKERS`, `notes.CLINICAL` or
        `ifbench.checkers.IFBENCH`.
      kwargs: the arguments of the kind's checker, by name.
    """

    id: str
    kwargs: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class InstructionTarget:
    """The `target` of an item of an instruction task, which its metrics take as the reference.

    Attributes:
      prompt: the prompt as given to the model.
      instructions: every instruction of the prompt that is checked.
      reference: the reference answer that the answer's content is compared with; "" where there is none.
    """

    prompt: str
    instructions: tuple[Instruction, ...]
    reference: str = ""
