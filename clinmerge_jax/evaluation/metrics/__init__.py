"""Scores of answers. A metric is one entry of `METRICS`, and says how it counts an item and scores a sum of counts."""

from clinmerge_jax.errors import BadInput
from clinmerge_jax.evaluation.metrics.form import length_ratio, never_stopped, repetition
from clinmerge_jax.evaluation.metrics.labels import accuracy, exact_match, macro_f1, unread
from clinmerge_jax.evaluation.metrics.metric import Metric, Output, composite, count_items
from clinmerge_jax.evaluation.metrics.overlap import bleu, chrf, has_wordnet, meteor, rouge

__all__ = ["METRICS", "Metric", "Output", "composite", "count_items", "macro_f1", "named"]

_ROUGE = [rouge(kind, stemmed) for stemmed in (False, True) for kind in ("rouge1", "rouge2", "rougeL", "rougeLsum")]
_BLEU = bleu()
_METEOR = meteor(synonyms=False)

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        *_ROUGE,
        _BLEU,
        chrf(),
        _METEOR,
        *([meteor(synonyms=True)] if has_wordnet() else []),
        # No encoder. A composite with BERTScore in it needs a name of its own.
        composite("composite_rouge_bleu_meteor", [*_ROUGE[:3], _BLEU, _METEOR]),
        exact_match(),
        accuracy(),
        unread(),
        length_ratio(),
        never_stopped(),
        repetition(),
    )
}


def named(names: str) -> list[Metric]:
    """The metrics that a config field lists, separated by commas.

    Raises:
      BadInput: a name is unknown or given twice.
    """
    chosen = [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in METRICS:
            raise BadInput(f"metrics: {name!r} is unknown; choose of {', '.join(METRICS)}")
        if chosen.count(name) > 1:
            raise BadInput(f"metrics: {name!r} is given twice; name it once")
    return [METRICS[name] for name in chosen]
