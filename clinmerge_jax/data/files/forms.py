"""Convert fields of a row to conversations, text and ids."""

from collections.abc import Mapping
from typing import Any

from clinmerge_jax.data.files.fields import is_plain, shown
from clinmerge_jax.errors import BadInput

_ROLES = {  # from ShareGPT, https://huggingface.co/docs/trl/dataset_formats, to the names in chat templates
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
}


def conversation(row: Mapping[str, Any], key: str, name: str) -> list[dict[str, Any]]:
    """The messages of a conversation, each with `role` and `content`.

    Args:
      row: the fields.
      key: `messages` (OpenAI: `role` and `content`) or `conversations` (ShareGPT: `from` and `value`).
      name: the name of the row, for messages.

    Raises:
      BadInput: the field is not a list of such messages, or a role of `conversations` is unknown.
    """
    who, what = ("role", "content") if key == "messages" else ("from", "value")
    messages = row[key]
    if not isinstance(messages, list) or not messages:
        raise BadInput(f"{name}: {key!r} is not a list of messages; give one")
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(part), str) for part in (who, what)):
            raise BadInput(f"{name}: a message lacks the text {who!r} or {what!r}; give both to each message")
    if key == "messages":
        # Parquet gives every message the keys of all messages, with None for those it lacks.
        return [{part: value for part, value in message.items() if value is not None} for message in messages]
    unknown = [message[who] for message in messages if message[who] not in _ROLES]
    if unknown:
        raise BadInput(f"{name}: a message is from {shown(unknown[:1])}; give one of {', '.join(_ROLES)}")
    return [{"role": _ROLES[message[who]], "content": message[what]} for message in messages]


def filled(row: Mapping[str, Any], key: str, name: str) -> str:
    """The text of a field that must not be blank.

    Raises:
      BadInput: the field is missing, blank or not text.
    """
    if not isinstance(row.get(key), str) or not row[key].strip():
        raise BadInput(f"{name}: {key!r} is empty or not text; give text")
    return row[key]


def identifier(row: Mapping[str, Any], name: str) -> str | None:
    """The row's `id` as text; None if it has none.

    Raises:
      BadInput: the id is neither text nor a whole number.
    """
    value = row.get("id")
    if value is None or value == "":
        return None
    if not is_plain(value) or isinstance(value, float):
        raise BadInput(f"{name}: 'id' is neither text nor a whole number; give one of the two")
    return str(value)
