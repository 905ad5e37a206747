"""Statistics of scores: estimates over seeds and items, their intervals, and tests.

`samples` holds the scores, `estimation` the interval to report, `resampling` its bootstrap form, `verdicts` the tests.
`documents` is for held-out loss, where each model has one loss per document and there are no seeds.
"""

from clinmerge_jax.statistics.estimation import Estimate, estimate
from clinmerge_jax.statistics.interval import LEVEL, Interval
from clinmerge_jax.statistics.resampling import bootstrap_interval
from clinmerge_jax.statistics.samples import (
    Sample,
    count_sample,
    difference,
    mean,
    ratio,
    score_sample,
)
from clinmerge_jax.statistics.verdicts import holm, mcnemar, minimum_detectable_difference, verdict

__all__ = [
    "LEVEL",
    "Estimate",
    "Interval",
    "Sample",
    "bootstrap_interval",
    "count_sample",
    "difference",
    "estimate",
    "holm",
    "mcnemar",
    "mean",
    "minimum_detectable_difference",
    "ratio",
    "score_sample",
    "verdict",
]
