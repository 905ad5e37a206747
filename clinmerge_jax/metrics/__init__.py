"""Scores of answers: `METRICS` has one entry for each metric.

A metric says how an item is counted and how a sum of counts is scored. Metrics that need a model (`encoder_metrics`),
an external program (`parse_external`) or a choice of parts (`parse_composite`) are made from config fields.
"""

import re
from collections.abc import Mapping

from clinmerge_jax.errors import BadInput
from clinmerge_jax.metrics import bertscore
from clinmerge_jax.metrics.external import external, parse_external
from clinmerge_jax.metrics.form import length_ratio, never_stopped, repetition
from clinmerge_jax.metrics.labels import accuracy, exact_match, macro_f1, unread
from clinmerge_jax.metrics.metric import Metric, Output, composite, count_items
from clinmerge_jax.metrics.overlap import bleu, chrf, has_wordnet, meteor, rouge

__all__ = [
    "METRICS",
    "RESERVED",
    "Metric",
    "Output",
    "composite",
    "count_items",
    "encoder_metrics",
    "external",
    "macro_f1",
    "named",
    "parse_composite",
    "parse_external",
]

_ROUGE = [rouge(kind, stemmed) for stemmed in (False, True) for kind in ("rouge1", "rouge2", "rougeL", "rougeLsum")]
_BLEU = bleu()
_METEOR = meteor(synonyms=False)
_COMPOSED = [*_ROUGE[:3], _BLEU, _METEOR]
_WITH_ENCODER = "composite_rouge_bleu_meteor_bertscore"

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        *_ROUGE,
        _BLEU,
        chrf(),
        _METEOR,
        *([meteor(synonyms=True)] if has_wordnet() else []),
        composite("composite_rouge_bleu_meteor", _COMPOSED),  # with BERTScore it has another name
        exact_match(),
        accuracy(),
        unread(),
        length_ratio(),
        never_stopped(),
        repetition(),
    )
}
# Names with a fixed meaning, reserved even where this run or this machine lacks the metric.
RESERVED = frozenset({*METRICS, *bertscore.NAMES, _WITH_ENCODER, "macro_f1", "meteor_exact_stem_wordnet"})


def encoder_metrics(model: str, layer: int | None = None, field: str = "bertscore.model") -> dict[str, Metric]:
    """BERTScore's precision, recall and F1, and the composite with its F1; arguments and errors as in `bertscore`."""
    scores = bertscore.bertscore(model, layer, field)
    return {metric.name: metric for metric in (*scores, composite(_WITH_ENCODER, [*_COMPOSED, scores[-1]]))}


def parse_composite(spec: str, known: Mapping[str, Metric]) -> Metric:
    """Make the mean of metrics from a config field such as "quality=rougeL_stemmed,bertscore_f1".

    Args:
      spec: NAME=METRIC,METRIC.
      known: the available metrics, by name.

    Raises:
      BadInput: `spec` is not of this form, the name is taken, or a part is unknown, given twice or not a score that is
        100 for the best answers.
    """
    match = re.fullmatch(r"\s*(\w+)\s*=(.*)", spec)
    if match is None:
        raise BadInput(f"composite: {spec!r} is not NAME=METRIC,METRIC")
    name = match[1]
    if name in known or name in RESERVED:
        raise BadInput(f"composite: a metric {name!r} exists already; choose another name")
    parts = named(match[2], known, field=f"composite {name}")
    for part in parts:
        if not part.graded:
            raise BadInput(f"composite {name}: {part.name} does not go up to 100 for the best answers; leave it out")
    return composite(name, parts)


def named(names: str, known: Mapping[str, Metric] = METRICS, field: str = "metrics") -> list[Metric]:
    """Look up the metrics that a config field lists, in its order.

    Args:
      names: names separated by commas.
      known: the available metrics, by name.
      field: the config field, for messages.

    Raises:
      BadInput: a name is unknown or given twice.
    """
    chosen = [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in known:
            raise BadInput(f"{field}: {name!r} is unknown; choose from {', '.join(known)}")
        if chosen.count(name) > 1:
            raise BadInput(f"{field}: {name!r} is given twice; name it once")
    return [known[name] for name in chosen]
