"""Every data set from rows of its published format, through its builder."""

import json

import published_rows
import pytest

from clinmerge_jax.data.sets import aci_bench, gsm8k, radiology
from clinmerge_jax.data.sets.files import Source
from clinmerge_jax.data.sets.prepared import prepare, read
from clinmerge_jax.data.sets.splits import by_hash, by_rank
from clinmerge_jax.errors import BadInput


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    with published_rows.all_families(tmp_path_factory) as folder:
        yield Source(str(folder))


def test_mts_dialog(source):
    first, second = read("mts_dialog", "test1", source)
    assert (first.id, first.label, first.fields) == ("test1-0", "GENHX", {"section_header": "GENHX"})
    assert first.input == "Doctor: What is it?\nPatient: Number 0."
    assert first.output == "Stated in TestSet-1-MEDIQA-Chat-2023, line 0."
    assert second.name == "MTS-Dialog-TestSet-1-MEDIQA-Chat-2023.csv row 2"


def test_aci_bench_whole_and_by_division(source):
    first, second = read("aci_bench", "test2", source)
    assert (first.id, first.cluster, first.input_name) == ("D2N30", "D2N30", "dialogue")
    assert first.output == published_rows.NOTE.strip() and "dataset" not in first.fields
    (results,) = read("aci_bench_objective_results", "test2", source)
    assert (results.id, results.output) == ("D2N30", "RESULTS\n\nX-ray without fracture.")
    assert prepare("aci_bench_objective_results", source).left_out["test2"] == 1
    plans = [row.output for row in read("aci_bench_assessment_and_plan", "test2", source)]
    assert plans == ["ASSESSMENT AND PLAN\n\nRest.", "Plan: tea"]


def test_headings_that_no_division_has_stay_with_the_section_before():
    divisions = aci_bench.divide("Seen today.\n" + published_rows.NOTE)
    assert divisions["subjective"] == "CHIEF COMPLAINT\n\nSore knee.\n\nVITALS\n\nPulse 70.\n\n"
    assert "".join(divisions.values()) == published_rows.NOTE


def test_an_impression_is_part_of_results_unless_it_is_in_capitals():
    divisions = aci_bench.divide("FINDINGS:\nClear.\nImpression: normal.\nIMPRESSION\nCold.\n")
    assert divisions["objective_results"] == "FINDINGS:\nClear.\nImpression: normal.\n"
    assert divisions["assessment_and_plan"] == "IMPRESSION\nCold.\n"


def test_open_i_is_cut_by_rank_and_each_usable_report_is_in_one_split(source):
    splits = {split: read("open_i", split, source) for split in ("train", "valid", "test")}
    assert [len(rows) for rows in splits.values()] == [23, 2, 4]
    ids = [row.id for rows in splits.values() for row in rows]
    assert sorted(ids, key=int) == [str(number) for number in range(30) if number != 9]
    assert prepare("open_i", source).left_out["test"] == 1
    row = splits["test"][0]
    assert (row.input, row.output) == (f"Clear lungs {row.id}.", f"Normal {row.id}.")


def test_open_i_as_a_table_with_splits_of_the_users_own(tmp_path):
    rows = [{"uid": str(n), "findings": f"Clear {n}.", "impression": "Normal." if n else ""} for n in range(3)]
    table = published_rows.write_csv(tmp_path / "indiana_reports.csv", rows)
    given = published_rows.write_csv(tmp_path / "splits.csv", [{"uid": n, "split": "test"} for n in "012"])
    found = list(radiology.open_i_rows(table, given, split="test"))
    assert [row and row.id for row in found] == [None, "1", "2"]
    assert [row for row in radiology.open_i_rows(table, given, split="train") if row] == []


def test_mimic_cxr_in_its_official_splits_with_the_patient_as_cluster(source):
    (row,) = read("mimic_cxr", "train", source)
    assert (row.id, row.cluster) == ("50", "10000032")
    assert (row.input, row.output) == ("The lungs are clear. No effusion.", "No acute disease.")
    assert prepare("mimic_cxr", source).left_out == {"train": 1, "valid": 0, "test": 0}
    assert [row.id for row in read("mimic_cxr", "valid", source)] == ["52"]


def test_mimic_bhc_keeps_a_patients_notes_in_one_split(source):
    splits = {split: read("mimic_bhc", split, source) for split in ("train", "valid", "test")}
    patients = [{row.cluster for row in rows} for rows in splits.values()]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 40
    assert all(len(rows) == 2 * len(group) for rows, group in zip(splits.values(), patients))
    assert all(by_hash(row.cluster) == "train" for row in splits["train"])
    assert len(read("mimic_bhc", "train", source, limit=3)) == 3
    assert read("mimic_bhc", "train", source, limit=3) == splits["train"][:3]


def test_meqsum_is_halved_and_trains_mediqa(source):
    halves = [{row.id for row in read("meqsum", split, source)} for split in ("train", "test")]
    assert list(map(len, halves)) == [3, 3] and not set.intersection(*halves)
    assert {row.id for row in read("mediqa_qs", "train", source)} == set.union(*halves)
    (test,) = read("mediqa_qs", "test", source)
    assert (test.id, test.input, test.output) == ("test-96", "A spot?", "What is it?")
    assert [row.id for row in read("mediqa_qs", "valid", source)] == ["valid-3"]


@pytest.mark.parametrize(
    "dataset, output, choices",
    [
        ("medqa_4options", "B", ("drug A", "drug B", "drug C", "drug D")),
        ("medqa_5options", "B", ("drug A", "drug B", "drug C", "drug D", "drug E")),
        ("medmcqa", "D", ("nerve a", "nerve b", "nerve c", "nerve d")),
        ("mmlu_anatomy", "C", ("hip", "rib", "jaw", "shin")),
    ],
)
def test_choices_of_the_authors_own_files(source, dataset, output, choices):
    for split in ("train", "test"):
        row = read(dataset, split, source)[0]
        assert (row.output, row.choices, row.label) == (output, choices, output)
        assert row.input == {"medqa": "Which drug?", "medmc": "Which nerve?", "mmlu_": "Which bone?"}[dataset[:5]]


def test_choices_as_medagentsbench_has_them(tmp_path):
    rows = [
        {
            "realidx": key,
            "question": "Which?",
            "options": dict(zip("ABCD", "wxyz")),
            "answer_idx": "A",
            "subject": subject,
        }
        for key, subject in (("u7", "anatomy"), ("u8", "college_biology"))
    ]
    for folder in ("medmcqa", "mmlu_medical"):
        published_rows.write_lines(tmp_path / folder / "test.jsonl", rows)
    source = Source(str(tmp_path))
    with published_rows.without_digests():
        assert [row.id for row in read("medmcqa", "test", source)] == ["u7", "u8"]
        assert [row.name for row in read("mmlu_college_biology", "test", source)] == ["test.jsonl line 2"]


def test_pubmedqa_tests_on_the_official_ids_and_trains_on_the_others(source):
    (test,) = read("pubmedqa", "test", source)
    assert (test.id, test.output, test.choices) == ("222", "C", ("yes", "no", "maybe"))
    assert (test.input, test.input_name) == ("We asked.\nWe counted.", "abstract")
    assert test.fields == {"question": "Does 222 help?"} and "It may." not in json.dumps(test.fields)
    assert [row.id for row in read("pubmedqa", "train", source)] == ["111", "333"]


def test_gsm8k_scores_the_number_and_shows_the_working(source):
    (row,) = read("gsm8k", "test", source)
    assert row.output == "2000" and row.shown.endswith("2000.\n#### 2,000")


@pytest.mark.parametrize(
    "answer, number",
    [
        ("so 3 and 4\n#### 1,234.50", "1234.5"),
        ("It costs $18.00.", "18"),
        ("First 5, then -7.", "-7"),
        ("#### 100", "100"),
        ("half: .5", ".5"),
        ("no idea", ""),
        ("#### 3\nQuestion 9", "3"),
    ],
)
def test_final_numbers_are_plain(answer, number):
    assert gsm8k.final_number(answer) == number


def test_shares_are_whole_numbers_and_the_last_split_takes_the_rest():
    splits = by_rank(map(str, range(3419)), {"train": 0.8, "valid": 0.1, "test": 0.1})
    assert [list(splits.values()).count(split) for split in ("train", "valid", "test")] == [2735, 341, 343]


def test_a_split_whose_files_are_absent_is_refused_with_its_source_and_licence(source, tmp_path):
    published_rows.write_lines(tmp_path / "gsm8k/test.jsonl", [{"question": "1?", "answer": "#### 1"}])
    bare = Source(str(tmp_path))
    with pytest.raises(
        BadInput, match=r"lacks gsm8k/train.jsonl, the split train of gsm8k; get it from https.*\(MIT\)"
    ):
        read("gsm8k", "train", bare)
    with pytest.raises(BadInput, match=r"mimic-iv-bhc.csv.*https://physionet.org/.*use agreement"):
        read("mimic_bhc", "test", bare)
    with pytest.raises(BadInput, match="split: gsm8k has no 'valid'; choose from train, test"):
        read("gsm8k", "valid", bare)
    with pytest.raises(BadInput, match="dataset: 'gsm9k' is unknown; choose from mts_dialog"):
        read("gsm9k", "test", bare)
