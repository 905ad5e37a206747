"""Model cards (README.md) and licence files of the results that jobs write."""

import itertools
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from clinmerge_jax.checkpoint.adapters.adapter import split_location
from clinmerge_jax.checkpoint.files import licence_files
from clinmerge_jax.checkpoint.output import OutputFolder

_FENCE = "---"


def front_matter(folder: pathlib.Path) -> dict[str, Any]:
    """The YAML front matter of a folder's README.md; empty if there is none or it is not YAML."""
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


def shown_name(location: str) -> str:
    """The name of a model or file in a card: the last part of a local path, so that a card shows no local folders.

    Args:
      location: `model` or `model+adapter`, as a config or a recipe names it.
    """
    places = [os.path.expanduser(part) for part in split_location(location) if part]
    return "+".join(os.path.basename(os.path.abspath(part)) if os.path.exists(part) else part for part in places)


def copy_licences(output: OutputFolder, leading: pathlib.Path, others: Iterable[tuple[str, pathlib.Path]]) -> None:
    """Copies the licence files of a result's other inputs as ROLE.FILE, except those that the leading folder has too.

    Args:
      output: the result; the leading folder's own files are copied elsewhere.
      leading: the input whose licence files the result carries under their own names.
      others: role and folder of each other input; a second, different text of a role becomes ROLE-2.FILE, and so on.
    """
    known = {path.read_bytes() for path in licence_files(leading)}
    copied: dict[str, bytes] = {}
    for role, folder in others:
        for path in licence_files(folder):
            text = path.read_bytes()
            if text in known:
                continue
            names = (f"{role}-{number}.{path.name}" for number in itertools.count(2))
            names = itertools.chain([f"{role}.{path.name}"], names)
            name = next(name for name in names if copied.get(name, text) == text)
            copied[name] = text
            output.write_bytes(name, text)


def credentialed_note(what: str) -> str:
    """The note in a card of a result that derives from data under a use agreement."""
    return f"**Derived from credentialed data**: the data use agreement applies to {what} too."


def merge_card(
    title: str,
    parents: Sequence[tuple[str, str, pathlib.Path]],
    method: str,
    recipe: str,
    tables: Sequence[tuple[str, str]],
    credentialed: bool,
) -> str:
    """The card of a merged model.

    Args:
      title: the model's name.
      parents: role, name and folder of each parent.
      method: the merge method.
      recipe: the recipe as YAML, with the names that the card may show.
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


def conversion_card(title: str, name: str, licence: Any, facts: Sequence[str], credentialed: bool) -> str:
    """The card of a model that was converted from another format.

    Args:
      title: the model's name.
      name: the name of the source model.
      licence: the licence that the source states.
      facts: lines about its format and its values.
      credentialed: whether data under a use agreement went into it.
    """
    lines = _beginning(title, {"tags": ["clinmerge_jax"]}, [licence])
    lines.append(f"Converted by clinmerge_jax from {_with_licence(name, licence)}.")
    lines += ["", *(f"* {fact}" for fact in facts), "", "It has the terms of what it was converted from."]
    if credentialed:
        lines += ["", credentialed_note("these weights")]
    return "\n".join(lines) + "\n"


def training_card(title: str, name: str, start: pathlib.Path, training: Mapping[str, Any], credentialed: bool) -> str:
    """The card of a checkpoint that was trained from another one.

    Args:
      title: the model's name.
      name: the name of the checkpoint that training started from.
      start: its folder.
      training: the settings of the training.
      credentialed: whether data under a use agreement went into the training or into its start.
    """
    licence = front_matter(start).get("license")
    lines = _beginning(title, {"base_model": name, "tags": ["clinmerge_jax"]}, [licence])
    lines.append(f"{_with_licence(name, licence)}, trained further.")
    if credentialed:
        lines += ["", credentialed_note("these weights")]
    lines += ["", "## Training", "", "```yaml", yaml.safe_dump(dict(training), sort_keys=False).strip(), "```"]
    return "\n".join(lines) + "\n"


def adapter_card(
    title: str,
    parents: Sequence[tuple[str, str, pathlib.Path]],
    rank: int,
    alpha: float,
    tables: Sequence[tuple[str, str]],
    credentialed: bool,
) -> str:
    """The card of a LoRA adapter extracted from the difference of two models.

    Args:
      title: the adapter's name.
      parents: role, name and folder of the adapter's base model, and of the model that it approximates.
      rank: the adapter's rank.
      alpha: the adapter's alpha.
      tables: heading and Markdown table of how much of the difference it keeps.
      credentialed: whether one of the models was derived from data under a use agreement.
    """
    licences = {role: front_matter(folder).get("license") for role, _, folder in parents}
    head = {"base_model": parents[0][1], "library_name": "peft", "tags": ["lora", "clinmerge_jax"]}
    lines = _beginning(title, head, licences.values())
    lines.append(f"The difference of two models as a LoRA adapter of rank {rank} (alpha {alpha:g}), by clinmerge_jax.")
    lines.append("")
    lines += [f"* {role}: {_with_licence(name, licences[role])}" for role, name, _ in parents]
    lines += ["", "The adapter inherits the terms of both."]
    if credentialed:
        lines += ["", credentialed_note("this adapter")]
    for heading, text in tables:
        lines += ["", f"## {heading}", "", text]
    return "\n".join(lines) + "\n"


def _beginning(title: str, head: Mapping[str, Any], licences: Iterable[Any]) -> list[str]:
    """The front matter and the title; `license` is left out if that of any input is not stated."""
    stated = sorted({str(licence or "") for licence in licences})
    if all(stated):
        head = {**head, "license": stated[0] if len(stated) == 1 else "other"}
    return [_FENCE, yaml.safe_dump(head, sort_keys=False).strip(), _FENCE, f"# {title}", ""]


def _with_licence(name: str, licence: Any) -> str:
    return f"{name}, licence {licence or 'not stated in its card: check before use'}"
