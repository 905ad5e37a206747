"""Metrics on small rows; the shared data have their own file."""

import numpy as np
import pytest
from sacrebleu.metrics import BLEU

from clinmerge_jax.errors import BadInput
from clinmerge_jax.metrics import (
    METRICS,
    Metric,
    Output,
    composite,
    count_items,
    macro_f1,
    named,
    overlap,
)
from clinmerge_jax.statistics import count_sample, difference, estimate

_REFERENCES = [
    "The patient has a dry cough and mild fever since Monday.\nShe takes lisinopril for hypertension.",
    "No known drug allergies were reported today.",
    "He will return in two weeks for a repeat chest radiograph.",
]
_ANSWERS = [
    "Patient reports coughing and a fever since Monday.\nLisinopril for hypertension was continued.",
    "No known drug allergies.",
    "Return in two weeks for chest imaging and follow up as needed.",
]


def _score(metric: Metric, answers: list[str], references: list[str], finished: bool = True) -> float:
    outputs = [Output(answer, finished) for answer in answers]
    return float(metric.score(count_items([metric], outputs, references)[metric.name].sum(axis=0)))


_OVERLAP = [name for name in METRICS if name.startswith(("rouge", "bleu", "chrf", "exact", "accuracy"))]


@pytest.mark.parametrize("name", _OVERLAP)
def test_the_reference_itself_gets_100(name):
    assert _score(METRICS[name], _REFERENCES, _REFERENCES) == pytest.approx(100)


def test_the_reference_itself_does_not_get_100_from_meteor():
    # Seven words and the full stop are one chunk of eight matches.
    assert _score(METRICS["meteor_exact_stem"], _REFERENCES[1:2], _REFERENCES[1:2]) == pytest.approx(100 - 50 / 8**3)
    assert _score(METRICS["composite_rouge_bleu_meteor"], _REFERENCES[1:2], _REFERENCES[1:2]) == pytest.approx(
        100 - 10 / 8**3
    )


def test_a_one_word_reference_has_no_perfect_rouge_2_and_no_corpus_bleu():
    for name, perfect in (("rouge1_unstemmed", 100), ("rouge2_unstemmed", 0), ("bleu", 0)):
        assert _score(METRICS[name], ["Noncontributory"], ["Noncontributory"]) == perfect
    counts = count_items([METRICS["bleu"]], [Output("Noncontributory")], ["Noncontributory"])["bleu"]
    assert METRICS["bleu"].of_items(counts) == [pytest.approx(100)]


@pytest.mark.parametrize("name", [name for name in METRICS if name != "unread"])
def test_empty_answers_get_nothing(name):
    assert _score(METRICS[name], ["", "", ""], _REFERENCES) == 0


def test_what_is_shown_beside_scores():
    words = "no fever no fever no fever"  # its three sequences of four words: no fever no fever twice
    assert _score(METRICS["repetition"], [words], [""]) == pytest.approx(100 / 3)
    assert _score(METRICS["length_ratio"], ["a b c", "d"], ["a b", "c d e f g h"]) == 0.5
    assert _score(METRICS["never_stopped"], ["a"], ["a"], finished=False) == 100
    assert _score(METRICS["never_stopped"], ["a"], ["a"]) == 0
    assert _score(METRICS["unread"], ["A", "", "B"], ["A", "A", "A"]) == pytest.approx(100 / 3)


def test_stemming_matches_inflected_words():
    pair = (["coughing patients"], ["coughs patient"])
    assert _score(METRICS["rouge1_unstemmed"], *pair) == 0 and _score(METRICS["rouge1_stemmed"], *pair) == 100


def test_rouge_lsum_takes_lines_in_any_order():
    pair = (["second line here\nfirst text there"], ["first text there\nsecond line here"])
    assert _score(METRICS["rougeLsum_unstemmed"], *pair) == 100
    assert _score(METRICS["rougeL_unstemmed"], *pair) == 50


@pytest.mark.parametrize("answers", [_ANSWERS, ["cough", "No", "He will"], ["", "No known drug allergies", ""]])
def test_bleu_of_summed_counts_is_that_of_sacrebleu(answers):
    expected = BLEU().corpus_score(answers, [_REFERENCES]).score
    assert _score(METRICS["bleu"], answers, _REFERENCES) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("answer", [*_ANSWERS, "cough", "the fever", "a a a a a", ""])
def test_bleu_of_one_item_is_the_sentence_bleu_of_sacrebleu(answer):
    expected = BLEU(effective_order=True).sentence_score(answer, [_REFERENCES[0]]).score
    counts = count_items([METRICS["bleu"]], [Output(answer)], _REFERENCES[:1])["bleu"]
    assert METRICS["bleu"].of_items(counts) == [pytest.approx(expected, abs=1e-9)]


def test_corpus_bleu_can_be_compared_and_resampled():
    bleu = METRICS["bleu"]
    ours, theirs = (
        count_items([bleu], [Output(answer) for answer in answers], _REFERENCES)["bleu"][None]
        for answers in (_REFERENCES[:2] + _ANSWERS[2:], _ANSWERS)
    )
    result = estimate(count_sample(ours, theirs), difference(bleu.score))
    expected = [BLEU().corpus_score(a, [_REFERENCES]).score for a in (_REFERENCES[:2] + _ANSWERS[2:], _ANSWERS)]
    assert result.value == pytest.approx(expected[0] - expected[1])


def test_the_composite_is_the_mean_of_its_parts():
    metric = METRICS["composite_rouge_bleu_meteor"]
    parts = [_score(part, _ANSWERS, _REFERENCES) for part in metric.parts]
    assert len(parts) == 5 and _score(metric, _ANSWERS, _REFERENCES) == pytest.approx(np.mean(parts))
    outputs = [Output(answer) for answer in _ANSWERS]
    counts = count_items([metric], outputs, _REFERENCES)[metric.name]
    np.testing.assert_array_equal(counts, [metric.count(*pair) for pair in zip(outputs, _REFERENCES)])
    of_items = [part.of_items(count_items([part], outputs, _REFERENCES)[part.name]) for part in metric.parts]
    np.testing.assert_allclose(metric.of_items(counts), np.mean(of_items, axis=0))


def test_a_metric_that_several_names_share_is_counted_once():
    calls = []

    def count(output: Output, reference: str) -> tuple[float, float]:
        calls.append(output)
        return 50, 1

    part = Metric("half", "always 50", count)
    count_items([part, composite("one", [part]), composite("two", [part])], [Output("a")], ["b"])
    assert len(calls) == 1


def test_macro_f1_weighs_labels_alike():
    metric = macro_f1(["yes", "no", "maybe"])
    # yes: 2 of 3 given, 2 due, F1 4 / 5; no: 1 given, 2 due, F1 2 / 3; maybe: due once, never given.
    answers, references = ["yes", "yes", "yes", "no", "unreadable"], ["yes", "yes", "no", "no", "maybe"]
    assert _score(metric, answers, references) == pytest.approx(100 * (4 / 5 + 2 / 3) / 3)
    assert _score(METRICS["accuracy"], answers, references) == 60


def test_exact_match_passes_over_case_and_white_space_only():
    answers, references = [" No\nallergies ", "No allergies.", "none"], ["no allergies"] * 3
    assert _score(METRICS["exact_match"], answers, references) == pytest.approx(100 / 3)


def test_meteor_without_wordnet_is_refused_by_the_name_that_needs_it(monkeypatch):
    monkeypatch.setattr(overlap, "has_wordnet", lambda: False)
    with pytest.raises(BadInput, match="meteor_exact_stem_wordnet: NLTK finds no WordNet"):
        overlap.meteor(synonyms=True)


def test_every_name_is_its_own_and_can_be_asked_for():
    assert [metric.name for metric in named("bleu, rouge1_stemmed")] == ["bleu", "rouge1_stemmed"]
    for names, message in (("rouge1", "'rouge1' is unknown; choose from rouge1_unstemmed"), ("bleu,bleu", "twice")):
        with pytest.raises(BadInput, match=message):
            named(names)


def test_outputs_and_references_must_pair():
    with pytest.raises(BadInput, match="1 for 3 references"):
        count_items([METRICS["bleu"]], [Output("a")], _REFERENCES)
