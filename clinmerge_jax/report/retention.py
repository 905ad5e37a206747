"""The table of held-out losses at the end of a merge."""

import dataclasses

from clinmerge_jax.evaluation.retention import Retention
from clinmerge_jax.report.tables import table
from clinmerge_jax.statistics import Interval


def retention_text(retention: Retention) -> str:
    """The losses of every model on every set, and the share of each parent's gain that the merge keeps."""
    header = ["held-out loss, nats per token", *(held_out.name for held_out in retention.sets)]
    indices = range(len(retention.sets))
    rows = [[model, *(retention.loss(model, index).format() for index in indices)] for model in retention.totals]
    kept = [retention.kept(index) for index in indices]
    if any(kept):
        shares = [Interval(*(100 * x for x in dataclasses.astuple(k))).format(0) + " %" if k else "" for k in kept]
        rows.append(["merged: share of the parent's gain over base", *shares])
    sizes = "; ".join(
        f"{held_out.name}: {len(held_out.documents)} documents, {held_out.counts.sum()} scored tokens"
        for held_out in retention.sets
    )
    note = f"In brackets: 95 % bootstrap intervals over documents. {sizes}. Of conversations only answers are scored."
    return f"{table(header, rows)}\n{note}"
