"""BERTScore beside an implementation in plain torch, and where it is installed beside bert-score, on random weights."""

import json
import os
import re
import subprocess

import encoders
import numpy as np
import pytest
import torch
from absl import logging

from clinmerge_jax.errors import BadInput
from clinmerge_jax.metrics import (
    METRICS,
    RESERVED,
    Metric,
    Output,
    count_items,
    encoder_metrics,
    parse_composite,
)

LAYER = 2
ANSWERS = [encoders.TEXTS[0], encoders.TEXTS[1], encoders.TEXTS[2], "fever fever", encoders.TEXTS[4], encoders.TEXTS[0]]
REFERENCES = [
    encoders.TEXTS[1],
    encoders.TEXTS[0],
    encoders.TEXTS[4],
    "No fever.",
    encoders.TEXTS[1],
    encoders.TEXTS[1],
]
SCORES = ("bertscore_precision", "bertscore_recall", "bertscore_f1")


@pytest.fixture(scope="module", params=("bert", "roberta"))
def known(request, tmp_path_factory):
    """Torch model, tokenizer and the metrics of the same weights."""
    model, tokenizer = encoders.build(request.param)
    folder = encoders.write(tmp_path_factory.mktemp(request.param) / "tiny", model, tokenizer)
    return model, tokenizer, encoder_metrics(folder, LAYER)


def _plainly(model, tokenizer, answer: str, reference: str) -> np.ndarray:
    """Precision, recall and F1 of one pair, token by token."""
    lead = " " if model.config.model_type == "roberta" else ""
    sides = []
    for text in (answer, reference):
        ids = tokenizer.encode(lead + text.strip()).ids
        with torch.no_grad():
            states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[LAYER][0].double()
        sides.append([state / state.norm() for state in states])

    def best(ones, others) -> float:
        return float(np.mean([max(float(one @ other) for other in others) for one in ones[1:-1]]))

    precision, recall = best(*sides), best(*reversed(sides))
    return 100 * np.array([precision, recall, 2 * precision * recall / (precision + recall)])


def _counts(metrics: dict[str, Metric], answers: list[str], references: list[str]) -> dict[str, np.ndarray]:
    outputs = [Output(answer) for answer in answers]
    return count_items([metrics[name] for name in SCORES], outputs, references)


def test_it_is_what_plain_torch_computes(known):
    model, tokenizer, metrics = known
    counts = _counts(metrics, ANSWERS, REFERENCES)
    expected = np.array([_plainly(model, tokenizer, *pair) for pair in zip(ANSWERS, REFERENCES)])
    assert np.ptp(expected, axis=0).min() > 2  # so agreement within .001 says something
    for column, name in enumerate(SCORES):
        np.testing.assert_allclose(metrics[name].of_items(counts[name]), expected[:, column], atol=1e-3)
        assert metrics[name].score(counts[name].sum(axis=0)) == pytest.approx(expected[:, column].mean(), abs=1e-3)


def test_it_is_what_bert_score_computes(known, tmp_path, repository, figures):
    python = os.environ.get("CLINMERGE_BERT_SCORE_PYTHON")
    if not python:
        pytest.skip(
            "CLINMERGE_BERT_SCORE_PYTHON does not name a Python with third_party/reference/requirements-bert-score.txt"
        )
    model, tokenizer, metrics = known
    folder = encoders.write(tmp_path / "model", model, tokenizer)
    more = [
        ("fever " * 99, "fever imaging"),
        ("[CLS] fever </s> and", "é"),
        ("fever.\n\nand cough", " the  cough"),
        ("", "a"),
    ]
    pairs = [*zip(ANSWERS, REFERENCES), *more]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    script = repository / "third_party" / "reference" / "bert_scores.py"
    command = [python, script, folder, str(LAYER), tmp_path / "pairs.json"]
    result = json.loads(subprocess.run(command, check=True, capture_output=True).stdout.splitlines()[-1])
    counts = _counts(metrics, *map(list, zip(*pairs)))
    ours = np.stack([metrics[name].of_items(counts[name]) for name in SCORES], axis=1)
    largest = np.abs(ours - 100 * np.array(result["scores"])).max()
    family = model.config.model_type
    figures.append(f"BERTScore, {family}, largest difference from bert-score in points of 100: {largest:.1e}")
    assert largest < 1e-3


def test_the_reference_itself_gets_100_and_nothing_gets_0(known):
    counts = _counts(known[2], [encoders.TEXTS[4], " ", "fever"], [encoders.TEXTS[4], "fever", ""])
    for name in SCORES:
        np.testing.assert_allclose(known[2][name].of_items(counts[name]), [100, 0, 0], atol=1e-4)


def test_one_pair_scores_as_it_does_among_others(known):
    metrics = known[2]
    counts = _counts(metrics, ANSWERS, REFERENCES)[SCORES[0]]
    np.testing.assert_allclose(metrics[SCORES[0]].count(Output(ANSWERS[0]), REFERENCES[0]), counts[0], atol=1e-3)


def test_the_composite_with_an_encoder_has_a_name_of_its_own(known):
    metrics = known[2]
    name = "composite_rouge_bleu_meteor_bertscore"
    assert {*metrics} == {*SCORES, name} and not {*metrics} & {*METRICS} and {*metrics} <= RESERVED
    outputs = [Output(answer) for answer in ANSWERS]
    counts = count_items([metrics[name], *metrics[name].parts], outputs, REFERENCES)
    parts = [part.score(counts[part.name].sum(axis=0)) for part in metrics[name].parts]
    assert len(parts) == 6
    assert metrics[name].score(counts[name].sum(axis=0)) == pytest.approx(np.mean(parts))


def test_equal_texts_are_encoded_once_and_for_all_three_scores(known, monkeypatch):
    rows = []
    metrics = known[2]
    shared = metrics[SCORES[0]].count_all
    assert all(metrics[name].count_all is shared for name in SCORES)
    monkeypatch.setattr(
        "clinmerge_jax.metrics.encoder.Encoder.states",
        lambda self, given: rows.append(given) or [np.ones((len(row), 2)) for row in given],
    )
    _counts(metrics, ANSWERS, REFERENCES)
    assert [len(given) for given in rows] == [len({*ANSWERS, *REFERENCES})]


def test_the_signature_says_model_and_layer_and_what_was_chosen_is_logged(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "warning", lambda line, *values: lines.append(line % values))
    model, tokenizer = encoders.build("bert", num_hidden_layers=9)
    unknown = encoders.write(tmp_path / "my-bert", model, tokenizer)
    published = encoders.write(tmp_path / "bert-base-uncased", model, tokenizer)
    given = encoder_metrics(unknown, 4)["bertscore_f1"].signature
    assert re.match(r"my-bert \([0-9a-f]{12}\), layer 4, no idf, not rescaled, clinmerge_jax ", given) and not lines
    other = encoder_metrics(published)["bertscore_f1"].signature
    assert re.match(r"bert-base-uncased \([0-9a-f]{12}\), layer 9,", other) and not lines
    assert re.match(r"my-bert \([0-9a-f]{12}\), layer 9,", encoder_metrics(unknown)["bertscore_f1"].signature)
    assert "the layer of my-bert that agrees best with people is not known; using the last, 9" in lines.pop()
    model, tokenizer = encoders.build("bert")
    with pytest.raises(BadInput, match="bertscore.model: layer 10 is requested, but .*roberta-base has 3 layers"):
        encoder_metrics(encoders.write(tmp_path / "roberta-base", model, tokenizer))


def test_texts_that_are_cut_or_empty_are_counted(known, monkeypatch):
    lines = []
    monkeypatch.setattr(logging, "warning", lambda line, *values: lines.append(line % values))
    _counts(known[2], ["fever " * 99, ""], ["fever", "fever"])
    assert lines == [
        "BERTScore: 1 of 3 texts have over 64 tokens; the rest is ignored",
        "BERTScore: 1 of 2 answers or their references are empty; they get 0",
    ]


def test_references_that_are_no_texts_are_refused(known):
    with pytest.raises(BadInput, match="bertscore: a reference is a dict"):
        _counts(known[2], ["a"], [{"rule": 1}])


def test_a_composite_of_ones_own(known):
    every = {**METRICS, **known[2]}
    quality = parse_composite(" quality = rougeL_stemmed, bertscore_f1", every)
    assert (quality.name, [part.name for part in quality.parts]) == ("quality", ["rougeL_stemmed", "bertscore_f1"])
    counts = count_items([quality], [Output(encoders.TEXTS[0])], [encoders.TEXTS[0]])["quality"]
    assert quality.of_items(counts) == pytest.approx([100])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("quality", "composite: 'quality' is not NAME=METRIC,METRIC"),
        ("bleu=chrf_sentence", "a metric 'bleu' exists already"),
        ("bertscore_f1=bleu", "a metric 'bertscore_f1' exists already"),  # without an encoder too
        ("quality=bleu,bertscore_f1", "composite quality: 'bertscore_f1' is unknown; choose from rouge1_unstemmed"),
        ("quality=bleu,bleu", "composite quality: 'bleu' is given twice"),
        ("quality=bleu,length_ratio", "composite quality: length_ratio does not go up to 100 for the best answers"),
        ("quality=repetition", "repetition does not go up"),
        ("quality=never_stopped", "never_stopped does not go up"),
    ],
)
def test_composites_that_mean_nothing_are_refused(spec, message):
    with pytest.raises(BadInput, match=message):
        parse_composite(spec, METRICS)
