"""Files of prompts with instructions, in the form of IFEval and IFBench, as items.

A line is a JSON object with `key`, `prompt`, `instruction_id_list` and `kwargs`, a list of as many objects as there are
instructions.
"""

from collections.abc import Mapping
from typing import Any

from clinmerge_jax.checkpoint.safetensors import parse_json
from clinmerge_jax.data.reading import check_unicode, numbered_lines
from clinmerge_jax.errors import BadInput
from clinmerge_jax.evaluation.instructions.asked import Asked
from clinmerge_jax.evaluation.instructions.checkers import CHECKERS, instruction
from clinmerge_jax.evaluation.tasks.task import Item

_MEND = "give JSON lines with 'key', 'prompt', 'instruction_id_list' and 'kwargs'"


def read_prompts(path: str, field: str, kinds: Mapping[str, Any] = CHECKERS) -> list[Item]:
    """Reads the prompts of a file.

    Args:
      path: of the file.
      field: the config field that gave it, for messages.
      kinds: the instructions that may occur.

    Returns:
      An item for each line: its key as id, the prompt as field and source, an `Asked` as target.

    Raises:
      BadInput: naming the file and line, and the key where it is the instruction that is wrong.
    """
    items: dict[str, Item] = {}
    for number, line in numbered_lines(path, field, _MEND):
        item = _item(parse_json(line, f"{path}:{number}"), f"{path}:{number}", kinds)
        if item.id in items:
            raise BadInput(f"{item.name}: has the same key as {items[item.id].name}; give each a key of its own")
        items[item.id] = item
    return list(items.values())


def _item(row: Any, name: str, kinds: Mapping[str, Any]) -> Item:
    check_unicode(row, name)
    if not isinstance(row, dict):
        raise BadInput(f"{name}: is no JSON object; {_MEND}")
    key, prompt, ids, kwargs = (row.get(part) for part in ("key", "prompt", "instruction_id_list", "kwargs"))
    if isinstance(key, bool) or not isinstance(key, (int, str)) or key == "":
        raise BadInput(f"{name}: 'key' is neither text nor a whole number; give one of the two")
    if not isinstance(prompt, str) or not prompt.strip():
        raise BadInput(f"{name}: 'prompt' is no text or empty; give some")
    if not isinstance(ids, list) or not ids or not all(isinstance(one, str) for one in ids):
        raise BadInput(f"{name}: 'instruction_id_list' is no list of ids; give one id or more")
    if not isinstance(kwargs, list) or len(kwargs) != len(ids) or not all(isinstance(one, dict) for one in kwargs):
        raise BadInput(f"{name}: 'kwargs' is no list of {len(ids)} objects; give one for each instruction")
    asked = tuple(instruction(kind, given, f"{name}: key {key}", kinds) for kind, given in zip(ids, kwargs))
    return Item(str(key), name, {"prompt": prompt}, prompt, Asked(prompt, asked))
