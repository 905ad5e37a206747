"""Correlates metrics with human ratings of the same outputs.

Reads outputs, references and ratings, scores each output by each metric, and correlates scores with ratings.
"""

import json
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from scipy import stats

from clinmerge_jax.checkpoint.output import result_path, write_atomically
from clinmerge_jax.data.files.rows import read_rows
from clinmerge_jax.errors import BadInput
from clinmerge_jax.metrics import Output, count_items, named
from clinmerge_jax.report.tables import table
from clinmerge_jax.statistics import Interval

TABLE_FILE = "correlations.json"
_MEND = "give a CSV, TSV or Parquet file, JSON lines or a JSON array"
_FEWEST = 10  # items; a correlation of fewer says nothing


def run(config: ConfigDict) -> None:
    """Runs the correlation that the config describes; see configs/evaluate.py:correlate for its fields."""
    metrics = named(config.metrics)
    rows = list(read_rows(config.outputs, "config.outputs", _MEND))
    rated = list(read_rows(config.ratings, "config.ratings", _MEND)) if config.ratings else rows
    if len(rated) != len(rows):
        raise BadInput(
            f"config.ratings: {config.ratings} has {len(rated)} rows and {config.outputs} {len(rows)}; give one for"
            " each, in the same order"
        )
    if len(rows) < _FEWEST:
        raise BadInput(f"config.outputs: {config.outputs} has {len(rows)} rows; give {_FEWEST} or more")
    columns = [column.strip() for column in config.columns.split(",")]
    ratings = {column: np.array([_number(row, column, name) for name, _, row in rated]) for column in columns}
    for column, values in ratings.items():
        if not np.ptp(values):
            raise BadInput(f"config.columns: {column} is the same in every row; nothing can correlate with it")
    outputs = [Output(_text(row, config.output_column, name)) for name, _, row in rows]
    references = [_text(row, config.reference_column, name) for name, _, row in rows]
    counts = count_items(metrics, outputs, references)
    found = []
    for metric in metrics:
        scores = metric.of_items(counts[metric.name])
        for column, values in ratings.items():
            interval = _pearson(scores, values)
            rank = float(stats.spearmanr(scores, values).statistic) if np.ptp(scores) else float("nan")
            found.append((metric.name, column, interval, rank))
    root = result_path(config.output)
    root.mkdir(parents=True, exist_ok=True)
    lines = [
        {
            "metric": metric,
            "rating": column,
            "pearson": r.estimate,
            "low": r.low,
            "high": r.high,
            "spearman": rank,
            "items": len(rows),
        }  # fmt: skip
        for metric, column, r, rank in found
    ]
    write_atomically(root / TABLE_FILE, (json.dumps(lines, indent=1) + "\n").encode())
    by_metric = {name: [r.format(2) for metric, _, r, _ in found if metric == name] for name in dict.fromkeys(
        metric for metric, *_ in found)}  # fmt: skip
    print(table([f"Pearson's r over {len(rows)} items", *columns], [[name, *row] for name, row in by_metric.items()]))
    print(f"In brackets: 95 % intervals by Fisher's transformation. Spearman's too are in {root / TABLE_FILE}.")


def _pearson(scores: np.ndarray, ratings: np.ndarray) -> Interval:
    """Pearson's correlation with its 95 % interval (Fisher 1921); NaN where all scores are equal."""
    if not np.ptp(scores):
        return Interval(float("nan"), float("nan"), float("nan"))
    found = stats.pearsonr(scores, ratings)
    ends = found.confidence_interval(0.95)
    return Interval(float(found.statistic), float(ends.low), float(ends.high))


def _text(row: dict[str, Any], column: str, name: str) -> str:
    if not isinstance(row.get(column), str):
        raise BadInput(f"{name}: has no text {column!r}; name the column that has it")
    return row[column]


def _number(row: dict[str, Any], column: str, name: str) -> float:
    try:
        value = float(row[column])
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{name}: has no number {column!r}; name columns that have one in every row") from error
    if not np.isfinite(value):
        raise BadInput(f"{name}: {column!r} is not finite; leave the row out")
    return value
