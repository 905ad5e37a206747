"""Reading of prompt files in the form of IFEval and IFBench.

A line is a JSON object with `key`, `prompt`, `instruction_id_list` and `kwargs`, a list with one object for each
instruction.
"""

import collections
from collections.abc import Mapping
from typing import Any

from clinmerge_jax.data.files.rows import read_rows
from clinmerge_jax.errors import BadInput
from clinmerge_jax.instructions.checkers import CHECKERS, Checker, instruction
from clinmerge_jax.instructions.ifbench.checkers import IFBENCH, UNDEFINED
from clinmerge_jax.instructions.target import InstructionTarget
from clinmerge_jax.tasks.task import Item

_MEND = "give JSON lines with 'key', 'prompt', 'instruction_id_list' and 'kwargs'"


def read_prompts(path: str, field: str) -> list[Item]:
    """Read prompts in IFEval's form with instructions of its 25 kinds.

    Args:
      path: path of the file.
      field: the config field that gave the path, for messages.

    Returns:
      An item for each line: its key as id, the prompt as field and source, an `InstructionTarget` as target.

    Raises:
      BadInput: a line is malformed; the message names file and line, and the key where an instruction is wrong.
    """
    return [_item(row, name, CHECKERS) for name, row in _rows(path, field)]


def read_ifbench(path: str, field: str) -> tuple[list[Item], Mapping[str, int]]:
    """Read IFBench's prompts, leaving out those with a kind of instruction in `ifbench.checkers.UNDEFINED`.

    Returns:
      The items, and for each undefined kind the number of prompts left out for it. A prompt with two undefined kinds
      counts for both.

    Raises:
      BadInput: as in `read_prompts`.
    """
    items = []
    left_out: collections.Counter[str] = collections.Counter()
    for name, row in _rows(path, field):
        undefined = UNDEFINED.keys() & row["instruction_id_list"]
        left_out.update(undefined)
        if not undefined:
            items.append(_item(row, name, IFBENCH))
    return items, left_out


def _rows(path: str, field: str) -> list[tuple[str, dict[str, Any]]]:
    """The rows with their names. Keys are checked to be unique; the contents of `kwargs` are not checked."""
    rows: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, _, row in read_rows(path, field, _MEND):
        _check(row, name)
        key = str(row["key"])
        if key in rows:
            raise BadInput(f"{name}: has the same key as {rows[key][0]}; give each its own key")
        rows[key] = name, row
    return list(rows.values())


def _check(row: Mapping[str, Any], name: str) -> None:
    key, prompt, ids, kwargs = (row.get(part) for part in ("key", "prompt", "instruction_id_list", "kwargs"))
    if isinstance(key, bool) or not isinstance(key, (int, str)) or key == "":
        raise BadInput(f"{name}: 'key' is neither text nor a whole number; give one of the two")
    if not isinstance(prompt, str) or not prompt.strip():
        raise BadInput(f"{name}: 'prompt' is empty or not text; give text")
    if not isinstance(ids, list) or not ids or not all(isinstance(one, str) for one in ids):
        raise BadInput(f"{name}: 'instruction_id_list' is not a list of ids; give one id or more")
    if not isinstance(kwargs, list) or len(kwargs) != len(ids) or not all(isinstance(one, dict) for one in kwargs):
        raise BadInput(f"{name}: 'kwargs' is not a list of {len(ids)} objects; give one for each instruction")


def _item(row: dict[str, Any], name: str, kinds: Mapping[str, Checker]) -> Item:
    pairs = zip(row["instruction_id_list"], row["kwargs"])
    asked = tuple(instruction(kind, given, f"{name}: key {row['key']}", kinds) for kind, given in pairs)
    return Item(
        str(row["key"]), name, {"prompt": row["prompt"]}, row["prompt"], InstructionTarget(row["prompt"], asked)
    )
