"""The plan of a merge as text, to be read before the merge runs."""

import re
from collections.abc import Mapping, Sequence

from clinmerge_jax.merging.plan import MergePlan, PlannedTensor
from clinmerge_jax.merging.recipes.schedule import layer_of
from clinmerge_jax.report.tables import table

_LAYER = re.compile(r"((?:^|\.)layers\.)\d+\.")


def plan_text(plan: MergePlan, output: str, roles: Mapping[str, str]) -> str:
    """Models, slices, vocabulary, and a table of the coefficients by module and, where they change, over the layers.

    Args:
      plan: the merge.
      output: the folder of the result.
      roles: the display name of each model.
    """
    recipe = plan.recipe
    lines = [f"{recipe.method} into {output}: {len(plan.tensors)} tensors, {plan.nbytes / 1e9:.3g} GB", ""]
    for model, one in plan.models.items():
        uses = ["base"] * (model == recipe.base) + ["its config and licence"] * (one.checkpoint is plan.leading)
        adapter = f" + {one.adapter.path}" if one.adapter else ""
        lines.append(f"* {roles[model]}: {one.checkpoint.path}{adapter}{f' ({chr(44).join(uses)})' if uses else ''}")
    if recipe.slices:
        lines += ["", *_stack(plan, roles)]
    if plan.vocabulary is not None:
        lines += ["", f"Vocabulary: {plan.vocabulary.size} rows", vocabulary_text(plan, roles)]
    modules: dict[tuple, list[PlannedTensor]] = {}
    for tensor in plan.tensors.values():
        models = tuple(one.model for one in tensor.inputs[tensor.spec.from_base :])
        modules.setdefault((_LAYER.sub(r"\1*.", tensor.name), models), []).append(tensor)
    columns = list(dict.fromkeys(model for _, models in modules for model in models))
    rows = []
    for (module, models), tensors in modules.items():
        ordered = sorted(tensors, key=lambda tensor: layer_of(tensor.name) or 0)
        own = [_settings([tensor.spec.values for tensor in ordered])]
        for model in columns:
            index = models.index(model) if model in models else None
            values = [] if index is None else [tensor.spec.source_values[index] for tensor in ordered]
            own.append("-" if index is None else _settings(values) or "merged")
        rows.append([module, str(len(tensors)), str(tensors[0].dtype), *own])
    text = table(["module", "tensors", "dtype", recipe.method, *(roles[model] for model in columns)], rows)
    note = "Several values of one coefficient run over the layers; (xN): the same in N layers."
    return "\n".join([*lines, "", text, note])


def vocabulary_text(plan: MergePlan, roles: Mapping[str, str]) -> str:
    """The notes on how vocabularies were aligned, as a list that names models by role instead of location."""
    labels = {one.checkpoint.label: roles[model] for model, one in plan.models.items()}
    lines = []
    for note in plan.vocabulary.notes:
        for label in sorted(labels, key=len, reverse=True):
            note = note.replace(label, labels[label])
        lines.append(f"* {note}")
    return "\n".join(lines)


def _stack(plan: MergePlan, roles: Mapping[str, str]) -> list[str]:
    lines, first = [], 0
    for part in plan.recipe.slices:
        start, end = part.sources[0].layers
        sources = " and ".join(f"{one.layers[0]}..{one.layers[1] - 1} of {roles[one.model]}" for one in part.sources)
        lines.append(f"* layers {first}..{first + end - start - 1}: {sources}")
        first += end - start
    return lines


def _settings(values: Sequence[Mapping[str, float]]) -> str:
    """The values of every coefficient, for tensors that differ only in their layer."""
    return "; ".join(f"{key} {_run_lengths([one[key] for one in values])}" for key in values[0])


def _run_lengths(values: Sequence[float]) -> str:
    runs: list[list] = []
    for value in values:
        if runs and runs[-1][0] == value:
            runs[-1][1] += 1
        else:
            runs.append([value, 1])
    if len(runs) == 1:
        return _number(runs[0][0])
    return ",".join(_number(value) + (f" (x{count})" if count > 1 else "") for value, count in runs)


def _number(value: float) -> str:
    return f"{value:.4g}"
