"""The correlate job: metrics against ratings of the same outputs."""

import json

import pytest
import support


@pytest.fixture
def files(tmp_path):
    lines = ["Reference Summary,Automatic Summary"]
    ratings = ["FactualF1,HallucinationRate"]
    for index in range(12):
        kept = "one two three four five six seven eight nine ten eleven twelve".split()[: 12 - index]
        lines.append(f"one two three four five six seven eight nine ten eleven twelve,{' '.join(kept)}")
        ratings.append(f"{(12 - index) / 12},{index % 3}")
    (tmp_path / "outputs.csv").write_text("\ufeff" + "\n".join(lines) + "\n")
    (tmp_path / "ratings.csv").write_text("\ufeff" + "\n".join(ratings) + "\n")
    return tmp_path


def _run(files, *more):
    return support.run_command(
        "--config=configs/evaluate.py:correlate", f"--config.outputs={files / 'outputs.csv'}",
        f"--config.ratings={files / 'ratings.csv'}", f"--config.output={files / 'out'}",
        "--config.metrics=rouge1_unstemmed", *more,
    )  # fmt: skip


def test_a_metric_that_follows_the_ratings_is_told_from_one_that_does_not(files, capfd):
    assert _run(files) == 0
    facts, invented = json.loads((files / "out" / "correlations.json").read_text())
    assert facts["pearson"] > 0.95 and facts["spearman"] == pytest.approx(1) and facts["low"] < facts["pearson"]
    assert abs(invented["pearson"]) < 0.5
    assert "Pearson's r over 12 items" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("--config.columns=Truth", "ratings.csv row 1: has no number 'Truth'; name columns"),
        ("--config.output_column=Summary", "outputs.csv row 1: has no text 'Summary'; name the column"),
        ("--config.ratings={outputs}", "outputs.csv row 1: has no number 'FactualF1'"),
        ("--config.outputs=none.csv", "config.outputs: none.csv is not a file; give a CSV, TSV"),
        ("--config.metrics=rouge9", "metrics: 'rouge9' is unknown"),
    ],
)
def test_bad_input_is_one_line(files, capfd, change, line):
    assert _run(files, change.replace("{outputs}", str(files / "outputs.csv"))) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert line in error and not (files / "out").exists()
