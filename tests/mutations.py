"""Random damage to the small text files of a checkpoint and to recipes, for tests of what a job says of them."""

import json
import random
from typing import Any

_VALUES = (
    None, True, -1, 0, 3.5, 1e308, "", "x", "5", "{{", [], {}, [[]], {"a": None}, "é" * 3000, 10**25, "\ud83d",
    ["a", 1], "{% for a in range(99999) %}{{ messages }}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ 'ab' * 3000000000 }}", "{{ messages[9].content }}", "{% set x = namespace() %}{{ x.y.z }}",
)  # fmt: skip


def _places(content: Any, place: tuple = ()) -> list[tuple]:
    found = [place]
    if isinstance(content, dict):
        items = list(content.items())
    else:
        items = list(enumerate(content)) if isinstance(content, list) else []
    for key, value in items[:40]:
        found += _places(value, (*place, key))
    return found


def mutate_json(text: str, rng: random.Random) -> str:
    """JSON with one value replaced, removed, renamed or doubled."""
    content = json.loads(text)
    place = rng.choice(_places(content))
    if not place:
        return json.dumps(rng.choice(_VALUES))
    holder = content
    for key in place[:-1]:
        holder = holder[key]
    kind = rng.choice(("replace", "replace", "remove", "rename"))
    if kind == "replace" or isinstance(holder, list):
        holder[place[-1]] = rng.choice(_VALUES)
    else:
        value = holder.pop(place[-1])
        if kind == "rename":
            holder[str(place[-1]) + "s"] = value
    return json.dumps(content)


def mutate_text(text: str, rng: random.Random) -> bytes:
    """Text cut off, with bytes or pieces changed, repeated, or not UTF-8."""
    data = bytearray(text.encode())
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice((1, 3, 20)))
        piece = data[start:end]
        others = (b"", b"\xff", bytes(piece) * 3, b"{%", b"}}", b": [", b"\n- ", b"!!python", b"\x00")
        data[start:end] = rng.choice(others)
    return bytes(data)
