"""Metrics of overlap of words or characters between answer and reference, from 0 to 100. K counts."""

import functools
import importlib.metadata
import types

import numpy as np
from nltk import data
from nltk.corpus import wordnet
from nltk.stem.porter import PorterStemmer
from nltk.tokenize import wordpunct_tokenize
from nltk.translate.meteor_score import single_meteor_score
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

from clinmerge_jax.errors import BadInput
from clinmerge_jax.metrics.metric import Metric, Output, averaged

_ORDER = 4  # the length of the longest n-grams of BLEU


def rouge(kind: str, stemmed: bool) -> Metric:
    """ROUGE's F1 (Lin 2004). ROUGE-L is over the whole text, ROUGE-Lsum the union over lines.

    The reference itself gets 100, except 0 for ROUGE-2 if it has one word; an empty answer gets 0.

    Args:
      kind: "rouge1", "rouge2", "rougeL" or "rougeLsum".
      stemmed: whether words are stemmed (Porter). ACI-BENCH's published "ROUGE-L" is unstemmed ROUGE-Lsum.
    """
    scorer = RougeScorer([kind], use_stemmer=stemmed)

    def value(output: Output, reference: str) -> float:
        return 100 * scorer.score(reference, output.text)[kind].fmeasure

    return averaged(
        f"{kind}_{'stemmed' if stemmed else 'unstemmed'}",
        f"rouge-score {_version('rouge-score')}, F1, {'' if stemmed else 'not '}stemmed",
        value,
    )


def bleu() -> Metric:
    """sacrebleu's corpus BLEU (Papineni et al. 2002; Post 2018).

    A single item is scored with effective order, because otherwise an answer of under four tokens gets 0. The
    reference itself gets 100, except 0 for a corpus of references of under four tokens; an empty answer gets 0.
    """
    counter = BLEU()
    counter.corpus_score([""], [[""]])  # sets the number of references in the signature

    def count(output: Output, reference: str) -> np.ndarray:
        result = counter.corpus_score([output.text], [[reference]])
        return np.array([*result.counts, *result.totals, result.sys_len, result.ref_len], np.float64)

    return Metric(
        "bleu",
        f"sacrebleu {counter.get_signature()}",
        count,
        width=2 * _ORDER + 2,
        score=functools.partial(_bleu, effective_order=False),
        item_score=functools.partial(_bleu, effective_order=True),
    )


def _bleu(sums: np.ndarray, effective_order: bool) -> np.ndarray:
    """BLEU with sacrebleu's exponential smoothing, over arrays of sums: the n-th zero count is replaced by 2**-n."""
    correct, total = sums[..., :_ORDER], sums[..., _ORDER : 2 * _ORDER]
    answer, reference = sums[..., -2], sums[..., -1]
    missed = (correct == 0) & (total > 0)
    smoothed = np.where(missed, 0.5 ** np.cumsum(missed, axis=-1), correct) / np.maximum(total, 1)
    logs = np.log(np.where(total > 0, smoothed, 1))
    orders = np.sum(total > 0, axis=-1)
    precision = np.exp(logs.sum(axis=-1) / np.maximum(orders if effective_order else _ORDER, 1))
    brevity = np.exp(np.minimum(0, 1 - reference / np.maximum(answer, 1)))
    scored = (correct.sum(axis=-1) > 0) & (effective_order | (orders == _ORDER))
    return np.where(scored, 100 * brevity * precision, 0.0)


def chrf() -> Metric:
    """The mean of sacrebleu's sentence chrF2 (Popović 2015); sacrebleu's corpus score pools n-grams instead.

    The reference itself gets 100, an empty answer 0.
    """
    scorer = CHRF()
    scorer.corpus_score([""], [[""]])

    def value(output: Output, reference: str) -> float:
        return scorer.sentence_score(output.text, [reference]).score

    return averaged("chrf_sentence", f"sacrebleu {scorer.get_signature()}, mean of sentences", value)


def has_wordnet() -> bool:
    """Whether NLTK finds WordNet on this machine."""
    for place in ("corpora/wordnet", "corpora/wordnet.zip"):
        try:
            data.find(place)
            return True
        except LookupError:
            continue
    return False


def meteor(synonyms: bool) -> Metric:
    """NLTK's METEOR (Lavie and Agarwal 2007; alpha .9, beta 3, gamma .5) over words and runs of punctuation.

    The reference itself is one chunk of its n tokens and so gets 100 (1 - 0.5 / n**3), not 100; an empty answer gets 0.

    Args:
      synonyms: whether to match WordNet synonyms besides exact words and stems.

    Raises:
      BadInput: synonyms are asked for and NLTK does not find WordNet.
    """
    if synonyms and not has_wordnet():
        raise BadInput(
            "meteor_exact_stem_wordnet: NLTK finds no WordNet; run `python -m nltk.downloader wordnet` or take "
            "meteor_exact_stem"
        )
    lexicon = wordnet if synonyms else types.SimpleNamespace(synsets=lambda word: ())
    stemmer = PorterStemmer()

    def value(output: Output, reference: str) -> float:
        words = wordpunct_tokenize(reference), wordpunct_tokenize(output.text)
        return 100 * single_meteor_score(*words, stemmer=stemmer, wordnet=lexicon)

    return averaged(
        "meteor_exact_stem_wordnet" if synonyms else "meteor_exact_stem",
        f"nltk {_version('nltk')}, {'exact, stem, WordNet' if synonyms else 'exact, stem'}, wordpunct_tokenize",
        value,
    )


def _version(package: str) -> str:
    return importlib.metadata.version(package)
