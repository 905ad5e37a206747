"""Looks at two parents, and a base if there is one, before they are merged: is it worth it, and how.

Open and check the models, measure every tensor piece by piece, judge the lineage, and write tables, pictures and one
JSON line per tensor; no weights are made.
"""

import importlib.metadata
import json
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tqdm
from absl import logging
from ml_collections import ConfigDict

from clinmerge_jax import provenance
from clinmerge_jax.checkpoint.folder import Checkpoint, open_checkpoint
from clinmerge_jax.checkpoint.output import OutputFolder, OutputState, write_atomically
from clinmerge_jax.errors import BadInput
from clinmerge_jax.merging.compatibility import check_compatible
from clinmerge_jax.merging.inspection import common_tensors, inspect_tensors
from clinmerge_jax.merging.lineage import Lineage, lineage
from clinmerge_jax.merging.measures import (
    FROM_BASE,
    PARENTS,
    Measures,
    Pair,
    TensorInspection,
    combine,
    group,
    in_display_order,
    pair_name,
    pairs_of,
)
from clinmerge_jax.report.advice import advice
from clinmerge_jax.report.heatmap import HeatMap, Panel, png
from clinmerge_jax.report.tables import table

_SHOWN_DIFFERENCES = 12  # tensors that could not be compared, in the report; tensors.jsonl has what was
_NOTHING = "-"


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
            print(f"{output.target} is finished already: same models, nothing to do.")
            print("To make it again: --config.overwrite=True. Its report is README.md there.")
            return
        notes = [*_vocabularies(models), *_refusals(models), *_left_out(others)]
        logging.info("%d tensors of %s", len(names), ", ".join(models))
        nbytes = sum(checkpoint.tensors[name].nbytes for checkpoint in models.values() for name in names)
        with tqdm.tqdm(total=nbytes, desc="inspect", unit="B", unit_scale=True, mininterval=0.5, leave=False) as bar:
            inspections, digests = inspect_tensors(models, names, config.top, progress=bar.update)
        found = lineage(inspections)
        everything = combine(one.measures for one in inspections)
        for pair in found.medians:
            if found.verdict(pair) != "one family":
                logging.warning(
                    "%s: %s (median cosine of the layers' matrices %.4f)",
                    pair_name(pair),
                    found.verdict(pair),
                    found.medians[pair],
                )
        rules = advice(found, everything, config.top)
        ordered = in_display_order(inspections)
        by_module = {**group(ordered, lambda one: one.module), "all": everything}
        by_layer = group(inspections, lambda one: one.layer)
        by_layer = {layer: by_layer[layer] for layer in sorted(by_layer, key=lambda n: (n is None, n))}
        heat_maps = _heat_maps(ordered, config.top)
        for name, heat_map in heat_maps.items():
            write_atomically(output.path(name), png(heat_map))
        output.write_text("tensors.jsonl", "".join(_line(one) for one in inspections))
        report = _report(
            output.target.name, models, found, rules, notes, by_module, by_layer, heat_maps, config.top, credentialed
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
    print(f"\nHow far the models are apart\n{_distance_table('module', by_module)}")
    print(f"\nWhat changed\n{_change_table('module', by_module, config.top)}\n{_change_note(found)}")
    print("\nRules of thumb\n" + "\n".join(f"* {rule}" for rule in rules))
    for note in notes:
        print(f"Note: {note}")
    print(f"\nThe report is {output.target / 'README.md'}, with heat maps over layers and modules beside it.")
    print(_next_step(config, found))


def _open(config: ConfigDict) -> dict[str, Checkpoint]:
    """The models by role, the parents first."""
    models = {role: open_checkpoint(config[role], f"config.{role}") for role in ("clinical", "instruct")}
    miniature = all(config[role].startswith("miniature:") for role in models)
    base = config.base if config.base != "auto" else "miniature:base" * miniature
    return models | ({"base": open_checkpoint(base, "config.base")} if base else {})


def _refusals(models: Mapping[str, Checkpoint]) -> list[str]:
    """Why the merge job would not take these models, if it would not."""
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


def _number(value: float | None, decimals: int = 4) -> str:
    return _NOTHING if value is None or not math.isfinite(value) else f"{value:.{decimals}f}"


def _percent(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.1%}"


def _label(key: str | int | None) -> str:
    return "outside" if key is None else str(key)


def _changes(measures: Measures) -> list[tuple[str, Pair]]:
    """The changes that are looked into: each parent's from the base, or that from one parent to the other."""
    if len(measures.pairs) == 1:
        return [("clinical - instruct", PARENTS)]
    return [("clinical - base", FROM_BASE[0]), ("instruct - base", FROM_BASE[1])]


def _distance_table(kind: str, groups: Mapping[str | int | None, Measures]) -> str:
    pairs = next(iter(groups.values())).pairs
    header = [kind, "tensors", "entries"]
    for pair in pairs:
        header += [f"{pair_name(pair)}: distance", "cosine"]
    rows = []
    for key, one in groups.items():
        row = [_label(key), str(one.tensors), f"{one.entries:,}"]
        for measures in one.pairs.values():
            row += [_number(measures.relative_distance), _number(measures.cosine, 6)]
        rows.append([*row, f"{one.collinear} of {one.tensors}"])
    return table([*header, "collinear"], rows)


def _change_table(kind: str, groups: Mapping[str | int | None, Measures], top: float) -> str:
    some = next(iter(groups.values()))
    has_base = len(some.pairs) > 1
    header = [kind, *(["cosine of changes"] if has_base else []), "signs agree"]
    for name, _ in _changes(some):
        header += [f"{name}: changed", f"in top {top:g} %"]
    rows = []
    for key, one in groups.items():
        row = [_label(key), *([_number(one.change_cosine)] if has_base else []), _percent(one.sign_agreement)]
        for _, pair in _changes(one):
            row += [_percent(one.pairs[pair].changed / one.entries), _percent(one.pairs[pair].top_share)]
        rows.append(row)
    return table(header, rows)


def _change_note(found: Lineage) -> str:
    signs = "entries that both parents changed" if found.has_base else "the weights, where neither is zero"
    return (
        "Distance: |B - A| / |A| for B vs A. Collinear: tensors of the parents with a |cosine| over 0.9995, which slerp"
        f" merges along the straight line. Signs: of {signs}. Changed: entries that differ. Top: what the entries that"
        " changed most hold of the squared change, tensor by tensor."
    )


def _heat_maps(ordered: Sequence[TensorInspection], top: float) -> dict[str, HeatMap]:
    """The pictures by file name."""
    inside = group([one for one in ordered if one.layer is not None], lambda one: (one.module, one.layer))
    outside = group([one for one in ordered if one.layer is None], lambda one: one.module)
    rows = list(dict.fromkeys(module for module, _ in inside))
    layers = sorted({layer for _, layer in inside})
    some = next(iter(inside.values()))

    def panel(title: str, figure: Callable[[Measures], float | None]) -> Panel:
        def of(measures: Measures | None) -> float:
            value = None if measures is None else figure(measures)
            return math.nan if value is None else value

        values = [[of(inside.get((row, layer))) for layer in layers] for row in rows]
        return Panel(title, np.array(values), np.array([of(one) for one in outside.values()]))

    def picture(title: str, unit: str, panels: Sequence[Panel], **scale) -> HeatMap:
        return HeatMap(title, unit, rows, layers, [_short(name) for name in outside], panels, **scale)

    distances = [
        panel(pair_name(pair), lambda one, pair=pair: one.pairs[pair].relative_distance) for pair in some.pairs
    ]
    tops = [panel(name, lambda one, pair=pair: one.pairs[pair].top_share) for name, pair in _changes(some)]
    pictures = {"relative_distance.png": picture("Relative distance", "|B - A| / |A|", distances)}
    if len(some.pairs) > 1:
        cosines = [panel("clinical - base and instruct - base", lambda one: one.change_cosine)]
        pictures["change_cosine.png"] = picture("Cosine of the two changes", "cosine", cosines, centre=0.0)
        compared = "entries that both parents changed"
    else:
        angles = [panel(pair_name(PARENTS), lambda one: one.pairs[PARENTS].degrees)]
        pictures["weight_angle.png"] = picture("Angle between the weights", "degrees", angles)
        compared = "the weights themselves"
    signs = [panel(compared, lambda one: one.sign_agreement)]
    pictures["sign_agreement.png"] = picture(
        "Agreement of signs", "equal signs (50 %: chance)", signs, centre=0.5, percent=True
    )
    title = f"Share of the squared change in the top {top:g} % of entries"
    pictures["top_share.png"] = picture(title, "share", tops, percent=True)
    return pictures


def _short(name: str) -> str:
    """What lies outside the layers, for a narrow column."""
    return {"embed_tokens": "embeddings", "norm": "final norm", "lm_head": "head"}.get(name, name)


def _report(
    title: str,
    models: Mapping[str, Checkpoint],
    found: Lineage,
    rules: Sequence[str],
    notes: Sequence[str],
    by_module: Mapping[str, Measures],
    by_layer: Mapping[int | None, Measures],
    heat_maps: Mapping[str, HeatMap],
    top: float,
    credentialed: bool,
) -> str:
    """README.md of the result."""
    lines = [f"# {title}: what the models have in common", ""]
    lines += [f"* {role}: {checkpoint.path.name}" for role, checkpoint in models.items()]
    if credentialed:
        lines += ["", "**Derived from credentialed data**: the data use agreement applies to these figures too."]
    lines += ["", "## Lineage", "", found.text()]
    lines += ["", "## Rules of thumb", "", *(f"* {rule}" for rule in rules)]
    if notes:
        lines += ["", "## Notes", "", *(f"* {note}" for note in notes)]
    lines += ["", "## By module", "", _distance_table("module", by_module)]
    lines += ["", _change_table("module", by_module, top), "", _change_note(found)]
    lines += ["", "## By layer", "", _distance_table("layer", by_layer), "", _change_table("layer", by_layer, top)]
    lines += ["", "## Pictures", ""]
    lines += [f"![{heat_map.title}]({name})\n" for name, heat_map in heat_maps.items()]
    lines += ["`tensors.jsonl` has these figures for every tensor, `provenance.json` the digests of the models.", ""]
    return "\n".join(lines)


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
