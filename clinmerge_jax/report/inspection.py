"""Tables, heat maps and the README.md text of an inspection."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from clinmerge_jax.checkpoint.card import credentialed_note
from clinmerge_jax.merging.inspection.lineage import Lineage
from clinmerge_jax.merging.inspection.measures import (
    FROM_BASE,
    PARENTS,
    Measures,
    Pair,
    TensorInspection,
    combine,
    group,
    in_display_order,
    pair_name,
)
from clinmerge_jax.report.heatmap import HeatMap, Panel
from clinmerge_jax.report.tables import table

_NOTHING = "-"


def figures_by_module(inspections: Sequence[TensorInspection]) -> dict[str, Measures]:
    """The figures of each module over the layers, in display order; last, under "all", those of all tensors."""
    everything = combine(one.measures for one in inspections)
    return {**group(in_display_order(inspections), lambda one: one.module), "all": everything}


def figures_by_layer(inspections: Iterable[TensorInspection]) -> dict[int | None, Measures]:
    """The figures of each layer; last, under None, those of the tensors outside the layers."""
    groups = group(inspections, lambda one: one.layer)
    return {layer: groups[layer] for layer in sorted(groups, key=lambda n: (n is None, n))}


def _number(value: float | None, decimals: int = 4) -> str:
    return _NOTHING if value is None or not math.isfinite(value) else f"{value:.{decimals}f}"


def _percent(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.1%}"


def _label(key: str | int | None) -> str:
    return "outside" if key is None else str(key)


def _changes(measures: Measures) -> list[tuple[str, Pair]]:
    """The changes under inspection: each parent's from the base, or that from one parent to the other."""
    if len(measures.pairs) == 1:
        return [("clinical - instruct", PARENTS)]
    return [("clinical - base", FROM_BASE[0]), ("instruct - base", FROM_BASE[1])]


def distance_table(kind: str, groups: Mapping[str | int | None, Measures]) -> str:
    """A table of the distance between the models of each pair.

    Args:
      kind: what the groups are: module or layer.
      groups: their figures by name or number.
    """
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


def change_table(kind: str, groups: Mapping[str | int | None, Measures], top: float) -> str:
    """A table of what changed from the base, or from one parent to the other.

    Args:
      kind: what the groups are: module or layer.
      groups: their figures by name or number.
      top: the percentage of entries that `top_share` refers to.
    """
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


def change_note(found: Lineage) -> str:
    """The note that explains the columns of both tables."""
    signs = "entries that both parents changed" if found.has_base else "the weights, where neither is zero"
    return (
        "Distance: |B - A| / |A| for B vs A. Collinear: tensors of the parents with a |cosine| over 0.9995, which slerp"
        f" merges along the straight line. Signs: of {signs}. Changed: entries that differ. Top: what the entries that"
        " changed most hold of the squared change, tensor by tensor."
    )


def heat_maps(inspections: Iterable[TensorInspection], top: float) -> dict[str, HeatMap]:
    """The heat maps of all figures over layers and modules, by file name.

    Args:
      inspections: the inspections of all tensors, at least one of them in a layer.
      top: the percentage of entries that `top_share` refers to.
    """
    ordered = in_display_order(inspections)
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
    """The short name of a tensor outside the layers, for a narrow column."""
    return {"embed_tokens": "embeddings", "norm": "final norm", "lm_head": "head"}.get(name, name)


def report_text(
    title: str,
    names: Mapping[str, str],
    inspections: Sequence[TensorInspection],
    found: Lineage,
    rules: Sequence[str],
    notes: Sequence[str],
    pictures: Mapping[str, HeatMap],
    top: float,
    credentialed: bool,
) -> str:
    """The README.md of the result.

    Args:
      title: the result's title.
      names: the models' names, by role.
      inspections: the inspections of all tensors.
      found: the verdict on the lineage.
      rules: the advice.
      notes: other notes for the reader.
      pictures: the heat maps, by file name.
      top: the percentage of entries that `top_share` refers to.
      credentialed: whether a model was derived from data under a data use agreement.
    """
    modules, layers = figures_by_module(inspections), figures_by_layer(inspections)
    lines = [f"# {title}: what the models have in common", ""]
    lines += [f"* {role}: {name}" for role, name in names.items()]
    if credentialed:
        lines += ["", credentialed_note("these figures")]
    lines += ["", "## Lineage", "", found.text()]
    lines += ["", "## Rules of thumb", "", *(f"* {rule}" for rule in rules)]
    if notes:
        lines += ["", "## Notes", "", *(f"* {note}" for note in notes)]
    lines += ["", "## By module", "", distance_table("module", modules)]
    lines += ["", change_table("module", modules, top), "", change_note(found)]
    lines += ["", "## By layer", "", distance_table("layer", layers), "", change_table("layer", layers, top)]
    lines += ["", "## Pictures", ""]
    lines += [f"![{heat_map.title}]({name})\n" for name, heat_map in pictures.items()]
    lines += ["`tensors.jsonl` has these figures for every tensor, `provenance.json` the digests of the models.", ""]
    return "\n".join(lines)
