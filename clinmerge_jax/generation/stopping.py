"""Stopping: the checkpoint's stop ids (end-of-sequence tokens), and stop strings."""

from collections.abc import Callable, Sequence

import numpy as np

from clinmerge_jax.checkpoint.files import GENERATION_FILE
from clinmerge_jax.checkpoint.folder import Checkpoint
from clinmerge_jax.checkpoint.formats.safetensors import parse_json
from clinmerge_jax.errors import BadInput


def stop_ids(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Reads eos_token_id (one id or several) from generation_config.json or, if it is missing there, from config.json.

    Raises:
      BadInput: a value is not a token id.
    """
    file = checkpoint.path / GENERATION_FILE
    generation = parse_json(file.read_bytes(), file) if file.is_file() else {}
    place, value = file, generation.get("eos_token_id") if isinstance(generation, dict) else None
    if value is None:
        place, value = checkpoint.path / "config.json", checkpoint.config.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(index) is int and index >= 0 for index in ids):
        raise BadInput(f"{place}: eos_token_id is {value!r}; give a token id, or a list of them")
    return tuple(ids)


def until(texts: Sequence[str], tokenizer) -> Callable[[np.ndarray], bool] | None:
    """Returns a function that tells whether generated tokens contain one of the texts; None if there are no texts."""
    if not texts:
        return None
    return lambda tokens: cut(tokenizer.decode(tokens, skip_special_tokens=True), texts)[1]


def cut(answer: str, texts: Sequence[str]) -> tuple[str, bool]:
    """Cuts an answer before the first of the texts in it; also returns whether there is one."""
    places = [place for place in map(answer.find, texts) if place >= 0]
    return (answer[: min(places)], True) if places else (answer, False)
