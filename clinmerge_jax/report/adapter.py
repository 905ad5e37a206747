"""Tables of how much of the models' difference an extracted LoRA adapter keeps."""

import math
from collections.abc import Mapping, Sequence

from clinmerge_jax.checkpoint.adapters.adapter_files import Target
from clinmerge_jax.merging.diagnostics import module_of
from clinmerge_jax.report.tables import table

_NOTE = (
    "Difference: the share of the whole model's squared difference that lies in these tensors. Kept: the share of it"
    " that the adapter gives back, 1 - |D - scaling B A|² / |D|²."
)


def share(value: float) -> str:
    """A share in percent, as tables show it."""
    return f"{value:.4%}"


def adapter_tables(
    targets: Sequence[Target], differences: Mapping[str, float], left: Mapping[str, float]
) -> list[tuple[str, str]]:
    """Headings and tables: what the adapter holds, and what differs but is not in it.

    Args:
      targets: the tensors that the adapter holds.
      differences: the squared difference of every tensor of the model, by name.
      left: the squared difference that remains with the adapter, by target.
    """
    total = math.fsum(differences.values())
    groups: dict[str, list[Target]] = {}
    for target in targets:
        groups.setdefault(module_of(target.name), []).append(target)
    rows = []
    for module, group in [*groups.items(), ("all", list(targets))]:
        square = math.fsum(differences[target.name] for target in group)
        kept = [1 - left[target.name] / differences[target.name] for target in group]
        ranks = sorted({target.rank for target in group if target.rank})
        rows.append(
            [
                module,
                str(len(group)),
                "whole" if not ranks else str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}",
                share(square / total),
                share(1 - math.fsum(left[target.name] for target in group) / square),
                share(min(kept)),
            ]
        )
    tables = [
        (
            "What the adapter keeps",
            table(["module", "tensors", "rank", "difference", "kept", "least kept of a tensor"], rows) + f"\n\n{_NOTE}",
        )
    ]
    inside = {target.name for target in targets}
    outside: dict[str, list[str]] = {}
    for name, square in differences.items():
        if square and name not in inside:
            outside.setdefault(module_of(name), []).append(name)
    if outside:
        rows = [
            [module, str(len(names)), share(math.fsum(differences[name] for name in names) / total)]
            for module, names in outside.items()
        ]
        tables.append(("What differs and is not in the adapter", table(["module", "tensors", "difference"], rows)))
    return tables
