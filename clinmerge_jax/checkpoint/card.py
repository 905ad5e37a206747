"""Model cards (README.md) of the checkpoints that jobs write."""

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

_FENCE = "---"
_CREDENTIALED = "**Derived from credentialed data**: the data use agreement applies to these weights too."


def front_matter(folder: pathlib.Path) -> dict[str, Any]:
    """The YAML head of a folder's README.md; empty where there is none or it is not YAML."""
    path = folder / "README.md"
    if not path.is_file():
        return {}
    parts = re.split(r"(?m)^---\s*$", path.read_text(encoding="utf-8", errors="replace"), maxsplit=2)
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        head = yaml.safe_load(parts[1])
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}  # a damaged card of a parent is no reason to refuse its weights
    return head if isinstance(head, dict) else {}


def merge_card(
    title: str,
    parents: Sequence[tuple[str, str, pathlib.Path]],
    method: str,
    recipe: str,
    tables: Sequence[tuple[str, str]],
    credentialed: bool,
) -> str:
    """The card's text.

    Args:
      title: the model's name.
      parents: role, name and folder of each parent.
      method: of the merge.
      recipe: as YAML, with the names that the card may show.
      tables: heading and Markdown table of what was measured.
      credentialed: whether a parent was derived from data under a use agreement.
    """
    licences = {role: front_matter(folder).get("license") for role, _, folder in parents}
    stated = sorted({str(licence) for licence in licences.values() if licence})
    head = {"base_model": [name for _, name, _ in parents], "tags": ["merge", "clinmerge_jax"]}
    if stated:
        head["license"] = stated[0] if len(stated) == 1 else "other"
    lines = [_FENCE, yaml.safe_dump(head, sort_keys=False).strip(), _FENCE, f"# {title}", ""]
    lines.append(f"A {method} merge in weight space, made with clinmerge_jax.")
    lines += ["", "## Parents", ""]
    for role, name, _ in parents:
        lines.append(f"* {role}: {name}, licence {licences[role] or 'not stated in its card: check before use'}")
    lines += ["", "A merged model inherits the terms of all of its parents."]
    if credentialed:
        lines += ["", _CREDENTIALED]
    lines += ["", "## Recipe", "", "```yaml", recipe.strip(), "```"]
    for heading, text in tables:
        lines += ["", f"## {heading}", "", text]
    return "\n".join(lines) + "\n"


def training_card(title: str, start: pathlib.Path, training: Mapping[str, Any], credentialed: bool) -> str:
    """The card of a checkpoint that was trained from another one.

    Args:
      title: the model's name.
      start: the folder of the checkpoint that training began from.
      training: its settings.
      credentialed: whether data under a use agreement went into it or into its start.
    """
    licence = front_matter(start).get("license")
    head = {"base_model": start.name, "tags": ["clinmerge_jax"], **({"license": str(licence)} if licence else {})}
    lines = [_FENCE, yaml.safe_dump(head, sort_keys=False).strip(), _FENCE, f"# {title}", ""]
    lines.append(f"{start.name}, licence {licence or 'not stated in its card: check before use'}, trained further.")
    if credentialed:
        lines += ["", _CREDENTIALED]
    lines += ["", "## Training", "", "```yaml", yaml.safe_dump(dict(training), sort_keys=False).strip(), "```"]
    return "\n".join(lines) + "\n"
