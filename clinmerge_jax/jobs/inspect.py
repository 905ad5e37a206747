"""Inspects two parents, and a base if given, before a merge: whether a merge is worthwhile, and by which method.

Opens and checks the models, measures every tensor piece by piece, judges the lineage, and writes tables, heat maps and
one JSON line per tensor. Writes no weights.
"""

import importlib.metadata
import json
from collections.abc import Mapping, Sequence

import tqdm
from absl import logging
from ml_collections import ConfigDict

from clinmerge_jax import provenance
from clinmerge_jax.checkpoint.card import shown_name
from clinmerge_jax.checkpoint.folder import Checkpoint, open_checkpoint
from clinmerge_jax.checkpoint.output import OutputFolder, OutputState
from clinmerge_jax.checkpoint.tokenizers.tokenizer import check_token_ids
from clinmerge_jax.errors import BadInput
from clinmerge_jax.merging.compatibility import check_compatible
from clinmerge_jax.merging.inspection.inspection import common_tensors, inspect_tensors
from clinmerge_jax.merging.inspection.lineage import Lineage, lineage
from clinmerge_jax.merging.inspection.measures import PARENTS, TensorInspection, pair_name, pairs_of
from clinmerge_jax.report.advice import advice
from clinmerge_jax.report.heatmap import png
from clinmerge_jax.report.inspection import (
    change_note,
    change_table,
    distance_table,
    figures_by_module,
    heat_maps,
    report_text,
)

_SHOWN_DIFFERENCES = 12  # the most tensors that a note lists as not comparable


def run(config: ConfigDict) -> None:
    """Runs the inspection that the config describes; see configs/merge.py:inspect for its fields."""
    models = _open(config)
    if not 0 < config.top <= 100:
        raise BadInput(f"config.top: is {config.top}; give a percentage over 0 and up to 100, such as 1.0")
    names, others = common_tensors(models)
    credentialed = provenance.is_credentialed(False, models.values())
    identity = {
        "job": "inspect",
        "top": config.top,
        "credentialed": credentialed,
        "environment": provenance.environment(),
        "inputs": {role: provenance.fingerprint(checkpoint) for role, checkpoint in models.items()},
    }
    with OutputFolder(config.output, identity, config.overwrite, provenance.same_result) as output:
        output.refuse_overlap({f"config.{role}": checkpoint.path for role, checkpoint in models.items()})
        if output.open() is OutputState.FINISHED:
            print(output.finished_text("same models", "Its report is"))
            return
        notes = [*_vocabularies(models), *_refusals(models), *_left_out(others)]
        logging.info("%d tensors of %s", len(names), ", ".join(models))
        nbytes = sum(checkpoint.tensors[name].nbytes for checkpoint in models.values() for name in names)
        with tqdm.tqdm(total=nbytes, desc="inspect", unit="B", unit_scale=True, mininterval=0.5, leave=False) as bar:
            inspections, digests = inspect_tensors(models, names, config.top, progress=bar.update)
        found = lineage(inspections)
        _warn(found)
        modules = figures_by_module(inspections)
        rules = advice(found, modules["all"], config.top)
        pictures = heat_maps(inspections, config.top)
        for name, picture in pictures.items():
            output.write_bytes(name, png(picture))
        output.write_text("tensors.jsonl", "".join(_line(one) for one in inspections))
        called = {role: shown_name(place) for role, place in _places(config).items()}
        report = report_text(
            output.target.name, called, inspections, found, rules, notes, pictures, config.top, credentialed
        )
        output.write_text("README.md", report)
        environment = provenance.environment()
        environment["packages"]["matplotlib"] = importlib.metadata.version("matplotlib")
        output.commit(
            {
                **environment,
                "sha256": {role: provenance.digests(checkpoint, digests) for role, checkpoint in models.items()},
                "credentialed": credentialed,
                "lineage": found.to_json(),
                "advice": rules,
                "notes": notes,
            }
        )
    print(f"\nLineage\n{found.text()}")
    print(f"\nHow far the models are apart\n{distance_table('module', modules)}")
    print(f"\nWhat changed\n{change_table('module', modules, config.top)}\n{change_note(found)}")
    print("\nRules of thumb\n" + "\n".join(f"* {rule}" for rule in rules))
    for note in notes:
        print(f"Note: {note}")
    print(f"\nThe report is {output.target / 'README.md'}, with heat maps over layers and modules beside it.")
    print(_next_step(config, found))


def _open(config: ConfigDict) -> dict[str, Checkpoint]:
    """The models by role, the parents first."""
    models = {role: open_checkpoint(place, f"config.{role}") for role, place in _places(config).items()}
    for checkpoint in models.values():
        check_token_ids(checkpoint)
    return models


def _places(config: ConfigDict) -> dict[str, str]:
    """The location of each model; base "auto" is the miniature's base if both parents are miniatures, else none."""
    places = {role: config[role] for role in ("clinical", "instruct")}
    miniature = all(place.startswith("miniature:") for place in places.values())
    base = config.base if config.base != "auto" else "miniature:base" * miniature
    return places | ({"base": base} if base else {})


def _warn(found: Lineage) -> None:
    for pair, median in found.medians.items():
        verdict = found.verdict(pair)
        if verdict != "one family":
            logging.warning("%s: %s (median cosine of the layers' matrices %.4f)", pair_name(pair), verdict, median)


def _refusals(models: Mapping[str, Checkpoint]) -> list[str]:
    """The reasons for which the merge job would refuse these models, if any."""
    notes = []
    for one, other in pairs_of(models):
        try:
            check_compatible(models[other], models[one])
        except BadInput as error:
            notes.append(f"a plain merge of {one} and {other} would be refused: {error}")
    return notes


def _vocabularies(models: Mapping[str, Checkpoint]) -> list[str]:
    sizes = {role: checkpoint.config.get("vocab_size") for role, checkpoint in models.items()}
    if len(set(sizes.values())) == 1:
        return []
    listed = ", ".join(f"{role} {size}" for role, size in sizes.items())
    return [
        f"the vocabularies differ in size ({listed}), so embeddings and heads are not compared, only what is common"
    ]


def _left_out(others: Sequence[str]) -> list[str]:
    if not others:
        return []
    listed = "; ".join(others[:_SHOWN_DIFFERENCES])
    more = f"; and {len(others) - _SHOWN_DIFFERENCES} more" if len(others) > _SHOWN_DIFFERENCES else ""
    return [f"{len(others)} tensors could not be compared and are left out ({listed}{more})"]


def _line(one: TensorInspection) -> str:
    return json.dumps(one.to_json(), allow_nan=False) + "\n"


def _next_step(config: ConfigDict, found: Lineage) -> str:
    if found.verdict(PARENTS) != "one family":
        return "Next: look for a clinical and an instruct model of one base; inspect them with another --config.output."
    merge = (
        f"Next: merge them with --config=configs/merge.py --config.instruct={config.instruct}"
        f" --config.clinical={config.clinical} --config.output=DIR"
    )
    if not found.has_base:
        merge += "\nor look again with --config.base=DIR, the model that both were trained from."
    return merge
