"""Updates of the token ids in config.json and generation_config.json where tokens have new ids."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from clinmerge_jax.checkpoint.files import GENERATION_FILE
from clinmerge_jax.checkpoint.formats.safetensors import parse_json
from clinmerge_jax.checkpoint.tokenizers.tokenizer import settings_of
from clinmerge_jax.errors import BadInput
from clinmerge_jax.merging.vocabulary.alignment_sources import AlignmentSources
from clinmerge_jax.merging.vocabulary.row_table import RowTable


@dataclasses.dataclass(frozen=True)
class TokenIdUpdates:
    """Changes of the leading model's files.

    Attributes:
      config: changed fields of config.json.
      generation_config: all fields of generation_config.json after the changes; None if none of them changes.
      notes: the changes, as lines of text for the report.
    """

    config: Mapping[str, Any]
    generation_config: Mapping[str, Any] | None
    notes: list[str]


def token_id_updates(sources: AlignmentSources, table: RowTable) -> TokenIdUpdates:
    """Replaces the ids in every field `..._token_id` by the same tokens' ids in the result.

    A token that the result lacks is replaced by the one that its tokenizer's settings name for the field, else removed.

    Args:
      sources: the models.
      table: the result's row table.

    Raises:
      BadInput: generation_config.json is damaged.
    """
    path = sources.lead.path / GENERATION_FILE
    generation = parse_json(path.read_bytes(), path) if path.is_file() else {}
    if not isinstance(generation, dict):
        raise BadInput(f"{path}: is not a JSON object; fetch it again")
    updates: list[dict[str, Any]] = []
    notes = []
    for file, content in (("config.json", sources.lead.config), (GENERATION_FILE, generation)):
        moved = {}
        for key, value in content.items():
            if not key.endswith("_token_id"):
                continue
            new = _new_ids(sources, table, key, value)
            if new != value:
                moved[key] = new
                notes.append(f"{file}: {key} {value} becomes {'none' if new is None else new}")
        updates.append(moved)
    changed, generation_changed = updates
    return TokenIdUpdates(changed, {**generation, **generation_changed} if generation_changed else None, notes)


def _new_ids(sources: AlignmentSources, table: RowTable, key: str, value: Any) -> Any:
    """The new value of a field of the leading model that holds a token id, or several."""
    given = value if isinstance(value, list) else [value]
    if not all(type(index) is int and index >= 0 for index in given):
        return value  # null, or -1 for none
    if table.by_id:
        kept = [index for index in given if not table.size <= index < sources.sizes[sources.leading]]
    else:
        lead = sources.must_have(sources.leading)
        kept = [table.ids[lead.tokens[index]] for index in given if lead.tokens.get(index) in table.ids]
        named = settings_of(table.tokenizer.path).get(key.removesuffix("_id"))
        named = named.get("content") if isinstance(named, dict) else named
        if not kept and named in table.ids:
            kept = [table.ids[named]]
    if isinstance(value, list):
        return kept or None
    return kept[0] if kept else None
