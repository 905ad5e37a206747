"""Systems under evaluation: a checkpoint with or without an adapter, a composition, or stored answers."""

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from clinmerge_jax import provenance
from clinmerge_jax.checkpoint.adapters.adapter import Adapter, open_adapter, split_location
from clinmerge_jax.checkpoint.card import shown_name
from clinmerge_jax.checkpoint.digest import sha256
from clinmerge_jax.checkpoint.folder import Checkpoint, open_checkpoint
from clinmerge_jax.data.files.rows import read_rows
from clinmerge_jax.errors import BadInput
from clinmerge_jax.evaluation.composed import Composition, is_composed, parse_composition, split_outside_parentheses
from clinmerge_jax.metrics.metric import Output
from clinmerge_jax.tasks.task import Item

FIELD = "config.model"
_STORED = "answers:"
_NAMED = re.compile(r"(?P<name>[\w.() -]+?)(?::(?P<way>chat|raw))?(?:@(?P<seed>\d+))?=(?P<location>.+)", re.ASCII)


@dataclasses.dataclass(frozen=True, eq=False)
class System:
    """A system under evaluation: a checkpoint, models composed in memory, or a folder of stored answers.

    Attributes:
      name: as tables show it; systems with the same name differ in `seed` or `chat`.
      seed: the seed of the training that produced it.
      location: as the config names it.
      chat: whether its prompts go through the chat template; None leaves it to the config.
      checkpoint: the model, of a composition the leading one; None for stored answers.
      adapter: the adapter on the checkpoint, if there is one.
      composition: what is composed in memory; None for a single model.
    """

    name: str
    seed: int
    location: str
    chat: bool | None = None
    checkpoint: Checkpoint | None = None
    adapter: Adapter | None = None
    composition: Composition | None = None

    @property
    def stored(self) -> pathlib.Path | None:
        """The folder of stored answers; None for a checkpoint."""
        if not self.location.startswith(_STORED):
            return None
        return pathlib.Path(os.path.expanduser(self.location.removeprefix(_STORED)))

    @property
    def parts(self) -> list[Checkpoint | Adapter]:
        """The checkpoint and the adapter, or the models of a composition; empty for stored answers."""
        if self.composition is not None:
            return list(self.composition.models)
        return [part for part in (self.checkpoint, self.adapter) if part is not None]

    def fingerprint(self, task: str) -> Any:
        """Identifies the system without reading weights; for stored answers, a digest of the file of `task`."""
        if self.stored is not None:
            return sha256(stored_file(self.stored, task))
        # Without the path: a folder that was moved is the same model.
        parts = [{**provenance.fingerprint(part), "path": ""} for part in self.parts]
        return parts if self.composition is None else [self.composition.describe(), *parts]

    def digests(self) -> dict[str, Any]:
        """SHA-256 of the files of each part, by what the part is."""
        if self.composition is None:
            names = ["model", "adapter"]
        else:
            names = [f"model {index}" for index in range(len(self.parts))]
        return {name: provenance.digests(part, {}) for name, part in zip(names, self.parts)}


def parse_systems(spec: str) -> list[System]:
    """Parses the systems that `config.model` names.

    Args:
      spec: `LOCATION`, `NAME=LOCATION` or `NAME@SEED=LOCATION`, separated by commas; `NAME:chat` and `NAME:raw` say for
        one system whether its prompts go through the chat template. A location is a folder, a hub id or
        `miniature:NAME`, each optionally with `+ADAPTER`; a composition of such models without adapters (see
        `composed`), such as `linear(A,B,t=0.5)`; or `answers:FOLDER`.

    Raises:
      BadInput: it is empty, two systems have the same name, seed and chat setting, or a location is not usable.
    """
    systems: list[System] = []
    for part in split_outside_parentheses(spec):
        if not part:
            raise BadInput(f"{FIELD}: names no model; give NAME=LOCATION, and separate several with commas")
        named = None if is_composed(part) else _NAMED.fullmatch(part)
        location = named["location"].strip() if named else part
        name = named["name"].strip() if named else _default_name(location)
        seed = int(named["seed"] or 0) if named else 0
        chat = named["way"] == "chat" if named and named["way"] else None
        if any((other.name, other.seed, other.chat) == (name, seed, chat) for other in systems):
            raise BadInput(
                f"{FIELD}: {name} is named twice; give models names of their own (NAME=LOCATION), and those that differ"
                " by training seed NAME@SEED=LOCATION"
            )
        if location.startswith(_STORED):
            system = System(name, seed, location)
            if not location.removeprefix(_STORED) or not system.stored.is_dir():
                raise BadInput(f"{FIELD}: {location} names no folder of answers; give answers:FOLDER")
        elif is_composed(location):
            composition = parse_composition(location, FIELD)
            system = System(name, seed, location, chat, composition.models[0], composition=composition)
        else:
            model, adapter = split_location(location)
            checkpoint = open_checkpoint(model, FIELD)
            system = System(name, seed, location, chat, checkpoint, open_adapter(adapter, FIELD) if adapter else None)
        systems.append(system)
    return systems


def _default_name(location: str) -> str:
    """The name of a system that the config does not name."""
    if not is_composed(location):
        return shown_name(location)
    kind, _, arguments = location.removesuffix(")").partition("(")
    return (
        f"{kind}({', '.join(one if '=' in one else shown_name(one) for one in split_outside_parentheses(arguments))})"
    )


def stored_file(folder: pathlib.Path, task: str) -> pathlib.Path:
    """The file with the answers to a task in a folder of stored answers."""
    return folder / f"{task}.jsonl"


def read_stored(folder: pathlib.Path, task: str, items: Sequence[Item]) -> list[Output]:
    """Reads the answers to a task's items from a folder of stored answers, in the items' order.

    The file has a line `{"id": ..., "answer": ...}` for each item, in any order; lines of other items are ignored.
    Optional fields are `finished` (default true) and `earlier`, the answers of earlier turns.

    Raises:
      BadInput: the file is missing or malformed, or has no answer or two answers for an item.
    """
    path = stored_file(folder, task)
    found: dict[str, Output] = {}
    for name, _, row in read_rows(str(path), FIELD, 'give a line {"id": ..., "answer": ...} for each item'):
        key, output = _stored(row, name)
        if key in found:
            raise BadInput(f"{name}: answers an item for the second time; keep one answer for each id")
        found[key] = output
    missing = [item for item in items if item.id not in found]
    if missing:
        raise BadInput(
            f"{path}: has no answer to {len(missing)} items, the first of which is {missing[0].name} with the id"
            f" {missing[0].id!r}; add them"
        )
    return [found[item.id] for item in items]


def _stored(row: Mapping[str, Any], name: str) -> tuple[str, Output]:
    if not isinstance(row.get("answer"), str) or not isinstance(row.get("id"), (str, int)):
        raise BadInput(f"{name}: lacks 'id' or the text 'answer'; give both")
    finished, earlier = row.get("finished", True), row.get("earlier", [])
    if not isinstance(finished, bool):
        raise BadInput(f"{name}: 'finished' is neither true nor false; give one of the two, or leave it out")
    if not isinstance(earlier, list) or not all(isinstance(answer, str) for answer in earlier):
        raise BadInput(f"{name}: 'earlier' is not a list of answers; give one for each earlier turn, or leave it out")
    return str(row["id"]), Output(row["answer"], finished, tuple(earlier))


def stored_row(item: Item, output: Output) -> str:
    """The JSON line of an answer, as `read_stored` reads it."""
    row: dict[str, Any] = {"id": item.id, "answer": output.text, "finished": output.finished}
    return json.dumps({**row, **({"earlier": output.earlier} if output.earlier else {})}, ensure_ascii=False) + "\n"
