"""Results: what lines hold and hide, what a kill leaves, and what the comparisons make of them."""

import json
import stat

import numpy as np
import pytest

from clinmerge_jax.errors import BadInput
from clinmerge_jax.metrics import METRICS
from clinmerge_jax.results import comparison
from clinmerge_jax.results.records import RESULTS_FILE, Cell, Result, ResultsFolder, key_of

ACCURACY = METRICS["accuracy"]


def _result(system, right, seed=0, task="quiz@test", mode="generated", clusters=None, floor=False, example_seed=0):
    ids = [f"i{index}" for index in range(len(right))]
    cell = Cell(system, seed, task, mode, example_seed=example_seed, floor=floor)
    counts = {"accuracy": np.array([[100.0 * value, 1.0] for value in right])}
    return Result(
        key_of({"cell": str(cell)}), cell, {"accuracy": 100.0 * np.mean(right)}, {"accuracy": "of labels"}, counts,
        ids, clusters or ids, {"items": len(ids)}, {"questions": "q", "settings": {}},
    )  # fmt: skip


def test_a_line_comes_back_as_it_was(tmp_path):
    result = _result("merged", [1, 0, 1], clusters=["c1", "c1", "c2"])
    with ResultsFolder(tmp_path / "out") as folder:
        folder.add(result)
    with ResultsFolder(tmp_path / "out") as folder:
        found = folder.known[result.key]
    assert (found.cell, found.scores, found.items, found.clusters) == (
        result.cell, result.scores, result.items, result.clusters,
    )  # fmt: skip
    assert np.array_equal(found.counts["accuracy"], result.counts["accuracy"])


def test_a_torn_last_line_is_dropped_and_the_others_stay(tmp_path):
    first, second = _result("one", [1, 0]), _result("two", [0, 1])
    with ResultsFolder(tmp_path) as folder:
        folder.add(first)
        folder.add(second)
    path = tmp_path / RESULTS_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with ResultsFolder(tmp_path) as folder:
        assert list(folder.known) == [first.key]
        folder.add(second)
    assert path.read_bytes() == whole


def test_ids_are_salted_by_a_key_that_only_the_owner_reads(tmp_path):
    with ResultsFolder(tmp_path / "a") as folder, ResultsFolder(tmp_path / "b") as other:
        ids = folder.salted("notes", ["patient-7", "patient-8"])
        assert ids == folder.salted("notes", ["patient-7", "patient-8"]) and len(set(ids)) == 2
        assert ids != other.salted("notes", ["patient-7", "patient-8"])
        assert ids != folder.salted("letters", ["patient-7", "patient-8"])
        assert not any("patient" in one for one in ids)
    with ResultsFolder(tmp_path / "a") as folder:  # the next run knows them again
        assert folder.salted("notes", ["patient-7"]) == ids[:1]
    assert stat.S_IMODE((tmp_path / "a" / ".salt").stat().st_mode) == 0o600


def test_private_files_are_the_owners_alone_even_where_they_are_replaced(tmp_path):
    with ResultsFolder(tmp_path) as folder:
        for text in ("one", "two"):
            path = folder.write("generations/quiz.jsonl", text, private=True)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600 and path.read_text() == text
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_two_runs_do_not_write_one_folder(tmp_path):
    with ResultsFolder(tmp_path), pytest.raises(BadInput, match="another process is writing .*; wait for it to end"):
        ResultsFolder(tmp_path)


def test_a_folder_with_other_lines_is_refused(tmp_path):
    (tmp_path / RESULTS_FILE).write_text(json.dumps({"model": "x"}) + "\n")
    with pytest.raises(BadInput, match="holds lines that are not Results of this version; name another folder"):
        ResultsFolder(tmp_path)


def test_seeds_of_a_system_are_its_interval_and_floors_join_every_group():
    rng = np.random.default_rng(0)
    results = [_result("merged", rng.integers(0, 2, 40), seed) for seed in range(5)]
    results += [
        _result("instruct", rng.integers(0, 2, 40)),
        _result("random letter", rng.integers(0, 2, 40), floor=True),
    ]
    (group,) = comparison.group(results)
    assert list(group.systems) == ["merged", "instruct", "random letter"] and group.floors == {"random letter"}
    score = comparison.score(group, "merged", ACCURACY, 0)
    assert (score.seeds, score.items, score.over) == (5, 40, "seeds and items")
    assert score.value == pytest.approx(np.mean([result.scores["accuracy"] for result in results[:5]]))
    assert comparison.score(group, "instruct", ACCURACY, 0).over == "items"


def test_a_difference_is_paired_and_tested_and_what_is_kept_gets_a_verdict():
    rng = np.random.default_rng(1)
    right = rng.integers(0, 2, 400)
    worse = right * (rng.random(400) > 0.3)
    groups = comparison.group([_result("instruct", right), _result("merged", right), _result("clinical", worse)])
    merged, clinical = comparison.contrasts(groups, {"quiz@test": ACCURACY}, ["instruct"], 2.0, 0)
    assert merged.difference == 0 and merged.kept == 1 and merged.retains is merged.p_value is None
    assert clinical.interval.high < 0 and clinical.retains == "not supported"
    assert clinical.not_worse == "not supported" and clinical.mcnemar < 1e-6
    assert clinical.kept == pytest.approx(worse.mean() / right.mean())


def test_p_values_are_adjusted_for_a_systems_tasks_and_means_are_over_tasks():
    rng = np.random.default_rng(2)
    results = []
    for task in ("a@test", "b@test", "c@test"):
        right = rng.integers(0, 2, 200)
        results += [
            _result("instruct", right, task=task),
            _result("merged", right * (rng.random(200) > 0.1), task=task),
        ]
    lead = dict.fromkeys(("a@test", "b@test", "c@test"), ACCURACY)
    found = comparison.contrasts(comparison.group(results), lead, ["instruct"], 2.0, 0)
    assert all(one.holm >= one.p_value for one in found) and len(found) == 3
    (mean,) = comparison.averages(found, lead)
    assert mean.tasks == 3 and mean.difference.estimate == pytest.approx(np.mean([one.difference for one in found]))
    assert mean.kept.low < mean.kept.estimate < 1


def test_other_items_are_no_pair():
    groups = comparison.group([_result("instruct", [1, 0, 1]), _result("merged", [1, 0, 1, 1])])
    assert len(groups) == 2
    assert comparison.contrasts(groups, {"quiz@test": ACCURACY}, ["instruct"], 2.0, 0) == []


def test_nothing_is_said_of_what_is_kept_of_nothing():
    groups = comparison.group([_result("instruct", [0] * 19 + [1]), _result("merged", [0, 1] * 10)])
    (one,) = comparison.contrasts(groups, {"quiz@test": ACCURACY}, ["instruct"], 2.0, 0)
    assert one.kept is one.kept_interval is one.retains is None and one.difference == 45
