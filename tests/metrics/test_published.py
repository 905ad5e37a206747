"""Metrics against figures that others published or measured on public data."""

import csv
import json
import pathlib
import time

import numpy as np
import pytest

from clinmerge_jax.metrics import METRICS, Output, count_items, floors, named
from clinmerge_jax.statistics import bootstrap_interval, count_sample

_LED = "LED_clinicalnlp_taskC_test2_division_combined"


def _rows(path: pathlib.Path) -> list[dict[str, str]]:
    if not path.is_file():
        pytest.skip(f"{path.name} is not among the shared data")
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def _notes(shared: pathlib.Path, name: str) -> dict[str, str]:
    return {row["encounter_id"]: row["note"] for row in _rows(shared / "data/aci_bench" / f"{name}.csv")}


def _scores(metrics, outputs, references) -> dict[str, float]:
    counts = count_items(metrics, outputs, references)
    return {metric.name: float(metric.score(counts[metric.name].sum(axis=0))) for metric in metrics}


@pytest.mark.parametrize(
    "kinds", [["rouge1", "rouge2"], pytest.param(["rougeL", "rougeLsum"], marks=pytest.mark.slow)], ids=["n", "L"]
)
def test_rouge_of_the_published_led_notes(shared, kinds):
    notes = _notes(shared, "clinicalnlp_taskC_test2")
    rows = _rows(shared / "golden/aci_bench" / f"{_LED}.csv")
    published = json.loads((shared / "golden/aci_bench" / f"{_LED}.json").read_text())["ALL"]
    metrics = [METRICS[f"{kind}_unstemmed"] for kind in kinds]
    scores = _scores(metrics, [Output(row["note"]) for row in rows], [notes[row["encounter_id"]] for row in rows])
    np.testing.assert_allclose(list(scores.values()), [100 * published[kind] for kind in kinds], atol=5e-4)


@pytest.mark.parametrize("kind, score", [("rouge1", 38.07), ("rouge2", 11.57), ("rougeLsum", 35.54)])
def test_rouge_of_one_training_note_for_everybody(shared, kind, score):
    notes = _notes(shared, "clinicalnlp_taskC_test2")
    fixed = [Output(next(iter(_notes(shared, "train").values())))] * len(notes)
    name = f"{kind}_unstemmed"
    assert round(_scores([METRICS[name]], fixed, list(notes.values()))[name], 2) == score


def test_meteor_of_copied_dialogues(shared):
    rows = _rows(shared / "data/mts_dialog/MTS-Dialog-TestSet-1-MEDIQA-Chat-2023.csv")
    copied = [Output(row["dialogue"]) for row in rows]
    scores = _scores(named("meteor_exact_stem"), copied, [row["section_text"] for row in rows])
    assert round(scores["meteor_exact_stem"], 1) == 29.7


def test_correlation_with_human_fact_scores(shared):
    rows = _rows(shared / "data/mts_dialog/MTS-Dialog-Automatic-Summaries-ValidationSet.csv")
    human = _rows(shared / "data/mts_dialog/MTS-Dialog-Manual-Scores4CorrelationStudy.csv")
    expected = {
        "meteor_exact_stem": 0.54,
        "chrf_sentence": 0.52,
        "rougeL_stemmed": 0.41,
        "rouge1_stemmed": 0.40,
        "bleu": 0.37,
        "rouge2_stemmed": 0.20,
    }
    metrics = [METRICS[name] for name in expected]
    outputs = [Output(row["Automatic Summary"]) for row in rows]
    counts = count_items(metrics, outputs, [row["Reference Summary"] for row in rows])
    of_items = {metric.name: metric.of_items(counts[metric.name]) for metric in metrics}
    facts, invented = ([float(row[column]) for row in human] for column in ("FactualF1", "HallucinationRate"))
    assert {name: round(np.corrcoef(x, facts)[0, 1], 2) for name, x in of_items.items()} == expected
    assert max(abs(np.corrcoef(x, invented)[0, 1]) for x in of_items.values()) < 0.095


@pytest.mark.slow
@pytest.mark.alone
def test_all_metrics_and_their_draws_over_two_data_sets_take_at_most_three_minutes(shared, figures):
    mts = [
        row
        for name in ("TestSet-1-MEDIQA-Chat-2023", "TestSet-2-MEDIQA-Sum-2023")
        for row in _rows(shared / "data/mts_dialog" / f"MTS-Dialog-{name}.csv")
    ]
    aci = [
        row
        for name in ("clinicalnlp_taskB_test1", "clinicalnlp_taskC_test2", "clef_taskC_test3")
        for row in _rows(shared / "data/aci_bench" / f"{name}.csv")
    ]
    start = time.perf_counter()
    for references in ([row["section_text"] for row in mts], [row["note"] for row in aci]):
        outputs = floors.another_target(references, range(len(references)))
        for name, counts in count_items(METRICS.values(), outputs, references).items():
            bootstrap_interval(count_sample(counts[None]), METRICS[name].score)
    seconds = time.perf_counter() - start
    figures.append(f"all metrics and 10,000 draws each on {len(mts)} sections and {len(aci)} notes: {seconds:.0f} s")
    assert seconds < 180
