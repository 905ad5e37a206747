"""Model cards (README.md) and terms of what jobs write."""

import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from clinmerge_jax.checkpoint.folder import licence_files
from clinmerge_jax.checkpoint.output import OutputFolder

_FENCE = "---"


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


def copy_licences(output: OutputFolder, leading: pathlib.Path, others: Iterable[tuple[str, pathlib.Path]]) -> None:
    """Copies the terms of what a result derives from, each as ROLE.FILE; but not what the leading folder has too.

    Args:
      output: where the leading folder's own files go by other ways.
      leading: the folder.
      others: role and folder of each.
    """
    known = {path.read_bytes() for path in licence_files(leading)}
    for role, folder in others:
        for path in licence_files(folder):
            if path.read_bytes() not in known:
                output.copy(path, f"{role}.{path.name}")


def credentialed_note(what: str) -> str:
    """The line that a result needs which derives from data under a use agreement."""
    return f"**Derived from credentialed data**: the data use agreement applies to {what} too."


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
    head = {"base_model": [name for _, name, _ in parents], "tags": ["merge", "clinmerge_jax"]}
    lines = _beginning(title, head, licences.values())
    lines.append(f"A {method} merge in weight space, made with clinmerge_jax.")
    lines += ["", "## Parents", ""]
    for role, name, _ in parents:
        lines.append(f"* {role}: {_with_licence(name, licences[role])}")
    lines += ["", "A merged model inherits the terms of all of its parents."]
    if credentialed:
        lines += ["", credentialed_note("these weights")]
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
    lines = _beginning(title, {"base_model": start.name, "tags": ["clinmerge_jax"]}, [licence])
    lines.append(f"{_with_licence(start.name, licence)}, trained further.")
    if credentialed:
        lines += ["", credentialed_note("these weights")]
    lines += ["", "## Training", "", "```yaml", yaml.safe_dump(dict(training), sort_keys=False).strip(), "```"]
    return "\n".join(lines) + "\n"


def adapter_card(
    title: str,
    model: pathlib.Path,
    base: pathlib.Path,
    rank: int,
    alpha: float,
    tables: Sequence[tuple[str, str]],
    credentialed: bool,
) -> str:
    """The card of a difference of two models as a LoRA adapter.

    Args:
      title: the adapter's name.
      model: the folder of the model that it leads to.
      base: the folder of the model that it is for.
      rank: of the adapter.
      alpha: likewise.
      tables: heading and Markdown table of what it keeps.
      credentialed: whether one of the models was derived from data under a use agreement.
    """
    parents = {"base": base, "fine-tuned model": model}
    licences = {role: front_matter(folder).get("license") for role, folder in parents.items()}
    head = {"base_model": base.name, "library_name": "peft", "tags": ["lora", "clinmerge_jax"]}
    lines = _beginning(title, head, licences.values())
    lines.append(f"The difference of two models as a LoRA adapter of rank {rank} (alpha {alpha:g}), by clinmerge_jax.")
    lines.append("")
    lines += [f"* {role}: {_with_licence(folder.name, licences[role])}" for role, folder in parents.items()]
    lines += ["", "The adapter inherits the terms of both."]
    if credentialed:
        lines += ["", credentialed_note("this adapter")]
    for heading, text in tables:
        lines += ["", f"## {heading}", "", text]
    return "\n".join(lines) + "\n"


def _beginning(title: str, head: Mapping[str, Any], licences: Iterable[Any]) -> list[str]:
    """The YAML head, with the licence that is stated, and the title."""
    stated = sorted({str(licence) for licence in licences if licence})
    if stated:
        head = {**head, "license": stated[0] if len(stated) == 1 else "other"}
    return [_FENCE, yaml.safe_dump(head, sort_keys=False).strip(), _FENCE, f"# {title}", ""]


def _with_licence(name: str, licence: Any) -> str:
    return f"{name}, licence {licence or 'not stated in its card: check before use'}"
