"""BERTScore (Zhang et al. 2020, arXiv 1904.09675), from 0 to 100.

I items, A tokens of an answer, R tokens of its reference, D hidden.
"""

import hashlib
import importlib.metadata
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from clinmerge_jax.checkpoint.digest import sha256
from clinmerge_jax.checkpoint.folder import resolve
from clinmerge_jax.metrics.encoder import Encoder, load_encoder
from clinmerge_jax.metrics.metric import Metric, Output, check_texts, columns

NAMES = ("bertscore_precision", "bertscore_recall", "bertscore_f1")

# The layer whose scores agree best with human judgement, from bert-score 0.3.13, by the last part of the model's name.
PUBLISHED_LAYERS = {
    "bert-base-uncased": 9,
    "bert-large-uncased": 18,
    "bert-base-cased-finetuned-mrpc": 9,
    "bert-base-multilingual-cased": 9,
    "bert-base-chinese": 8,
    "roberta-base": 10,
    "roberta-large": 17,
    "roberta-large-mnli": 19,
    "scibert_scivocab_uncased": 8,
    "scibert_scivocab_cased": 9,
}


def bertscore(model: str, layer: int | None = None, field: str = "bertscore.model") -> tuple[Metric, Metric, Metric]:
    """BERTScore's precision, recall and F1 with the defaults of bert-score 0.3.13, each averaged over items.

    Every token of one text is matched to the token of the other text, special tokens included, whose state has the
    largest cosine similarity with its own. These maxima are averaged over all but the special tokens, without idf
    weights and without rescaling by a baseline. One difference: bert-score replaces a negative maximum by 0 where the
    batch happens to be padded.

    The reference itself gets 100; an empty answer, or one to an empty reference, gets 0. Texts longer than the
    encoder's positions are cut, and their number is logged.

    Args:
      model: folder or hub id of a BERT or RoBERTa with safetensors.
      layer: the layer after which states are compared. None means the published layer, looked up by the model's name,
        or the last layer where none is published, which is logged.
      field: the config field that gave the model, for messages.

    Raises:
      BadInput: as in `load_encoder`.
    """
    name = model.rstrip("/").rpartition("/")[2].partition("@")[0]
    if layer is None:
        layer = PUBLISHED_LAYERS.get(name)
    encoder = load_encoder(model, field, layer)
    if layer is None:
        logging.warning(
            "%s: the layer of %s that agrees best with people is not known; using the last, %d",
            field,
            name,
            encoder.layer,
        )

    def count_all(outputs: Sequence[Output], references: Sequence[Any], sources: Sequence[str] | None) -> np.ndarray:
        check_texts(references, "bertscore")
        scores_I3 = _scores(encoder, [output.text for output in outputs], references)
        return np.concatenate([100 * scores_I3, np.ones((len(outputs), 1))], axis=1)

    version = importlib.metadata.version("clinmerge_jax")
    weights = [sha256(path) for path in sorted(resolve(model, field).glob("*.safetensors"))]
    digest = hashlib.sha256("".join(weights).encode()).hexdigest()[:12]
    signature = f"{name} ({digest}), layer {encoder.layer}, no idf, not rescaled, clinmerge_jax {version}"
    return columns(NAMES, signature, count_all)


def _scores(encoder: Encoder, answers: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Precision, recall and F1 of each pair, [I, 3], from 0 to 1; equal texts are encoded once."""
    texts = list(dict.fromkeys([*answers, *references]))
    rows, cut = encoder.tokenize(texts)
    if cut:
        most = encoder.config.max_tokens
        logging.warning("BERTScore: %d of %d texts have over %d tokens; the rest is ignored", cut, len(texts), most)
    weights = [~np.isin(row, encoder.specials) for row in rows]
    empty = {text for text, weight in zip(texts, weights) if not weight.any()}
    pairs = list(zip(answers, references))
    nothing = sum(not empty.isdisjoint(pair) for pair in pairs)
    if nothing:
        logging.warning("BERTScore: %d of %d answers or their references are empty; they get 0", nothing, len(pairs))
    units = [states / np.linalg.norm(states, axis=1, keepdims=True) for states in encoder.states(rows)]
    known = {text: (unit, weight) for text, unit, weight in zip(texts, units, weights)}
    scores = [_match(*known[one], *known[two]) if empty.isdisjoint((one, two)) else (0.0,) * 3 for one, two in pairs]
    return np.array(scores, np.float64).reshape(-1, 3)


def _match(
    answer_AD: np.ndarray, weight_A: np.ndarray, reference_RD: np.ndarray, weight_R: np.ndarray
) -> tuple[float, float, float]:
    """Precision, recall and F1 by greedy matching (section 3 of the paper)."""
    cosines_AR = answer_AD @ reference_RD.T
    precision = float(np.mean(cosines_AR.max(axis=1), where=weight_A, dtype=np.float64))
    recall = float(np.mean(cosines_AR.max(axis=0), where=weight_R, dtype=np.float64))
    total = precision + recall
    return precision, recall, 2 * precision * recall / total if total else 0.0
