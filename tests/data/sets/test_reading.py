"""Published files that are not as they should be: one line that names file and row, and quotes nothing."""

import json

import published_rows
import pytest

from clinmerge_jax.data.sets import (
    gsm8k,
    mts_dialog,
    multiple_choice,
    pubmedqa,
    question_summaries,
    radiology,
)
from clinmerge_jax.data.sets.reading import csv_rows
from clinmerge_jax.errors import BadInput

SECRET = "Zebra"
ROW = {"ID": "0", "section_header": "CC", "section_text": f"{SECRET} cough.", "dialogue": f"Doctor: {SECRET}?"}


def _refusal(rows):
    with pytest.raises(BadInput) as error:
        list(rows)
    assert SECRET not in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


def test_a_missing_column_is_named(tmp_path):
    row = {key: value for key, value in ROW.items() if key != "section_text"}
    path = published_rows.write_csv(tmp_path / "train.csv", [row])
    assert _refusal(mts_dialog.rows(path, "train")).startswith(f"{path}: has no column 'section_text'; ")


@pytest.mark.parametrize("field", ["section_text", "dialogue", "ID"])
def test_an_empty_field_is_named_with_its_row(tmp_path, field):
    path = published_rows.write_csv(tmp_path / "train.csv", [ROW, ROW | {field: " \n"}])
    assert _refusal(mts_dialog.rows(path, "train")).startswith(f"train.csv row 2: {field!r} is empty")


def test_another_encoding_is_refused_by_the_last_good_row(tmp_path):
    path = tmp_path / "train.csv"
    path.write_bytes(b"ID,section_header,section_text,dialogue\r\n" + f"0,CC,{SECRET} 37\xb0,hi\r\n".encode("latin-1"))
    assert "is not UTF-8 after row 0" in _refusal(mts_dialog.rows(path, "train"))
    path = tmp_path / "train.jsonl"
    path.write_bytes('{"question": "37\xb0", "answer": "#### 1"}\n'.encode("latin-1"))
    assert "is not UTF-8 after line 0" in _refusal(gsm8k.rows(path, "train"))


@pytest.mark.parametrize("line, found", [("1,CC,a", "fewer"), ("1,CC,a,b,c", "more")])
def test_rows_of_another_width_are_refused(tmp_path, line, found):
    path = published_rows.write_text(tmp_path / "a.csv", f"ID,section_header,section_text,dialogue\n{line}\n")
    assert _refusal(mts_dialog.rows(path, "train")).startswith(f"a.csv row 1: has {found} fields than columns")


def test_an_open_quotation_mark_is_refused(tmp_path):
    path = published_rows.write_text(tmp_path / "a.csv", f'ID,section_header,section_text,dialogue\n1,CC,a,"{SECRET}')
    assert "is not a table after row 0" in _refusal(mts_dialog.rows(path, "train"))


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    path = published_rows.write_text(tmp_path / "a.csv", "\ufeffID,b\n1,2\n")
    assert list(csv_rows(path, ["ID"])) == [("a.csv row 1", {"ID": "1", "b": "2"})]


def test_what_only_looks_like_a_workbook_is_refused(tmp_path):
    path = published_rows.write_text(tmp_path / "a.xlsx", SECRET)
    assert "is not a .xlsx workbook" in _refusal(question_summaries.rows(path, ("a", "b", "c"), "x"))
    path = published_rows.write_xlsx(tmp_path / "b.xlsx", [("q_id", "NLM Question"), (1, SECRET)])
    assert "has no column 'Summary'" in _refusal(
        question_summaries.rows(path, ("q_id", "NLM Question", "Summary"), "x")
    )


def test_answers_that_are_no_option_are_refused(tmp_path):
    row = {"question": SECRET, "options": dict(zip("ABCD", "wxyz")), "answer_idx": "E"}
    path = published_rows.write_lines(tmp_path / "a.jsonl", [row])
    assert _refusal(multiple_choice.lettered_rows(path, "test", 4)).startswith("a.jsonl line 1: the answer is not one")
    assert "'options' are not 5 texts" in _refusal(multiple_choice.lettered_rows(path, "test", 5))
    row = {"id": "u", "question": SECRET, "cop": 0, "opa": "w", "opb": "x", "opc": "y", "opd": "z"}
    path = published_rows.write_lines(tmp_path / "b.json", [row])
    assert "the answer is not one of its 4 options" in _refusal(multiple_choice.medmcqa_rows(path))


def test_answers_of_pubmedqa_that_contradict_each_other_are_refused(tmp_path):
    row = {"QUESTION": SECRET, "CONTEXTS": [SECRET], "final_decision": "yes"}
    path = published_rows.write_text(tmp_path / "ori_pqal.json", json.dumps({"1": row}))
    truth = published_rows.write_text(tmp_path / "truth.json", json.dumps({"1": "no"}))
    assert "ori_pqal.json 1: its answer is missing or differs from that in truth.json" in _refusal(
        pubmedqa.rows(path, truth, "test")
    )
    truth = published_rows.write_text(tmp_path / "truth.json", json.dumps({"2": "no"}))
    assert "names 2, which is not in" in _refusal(pubmedqa.rows(path, truth, "test"))


def test_sums_without_a_final_number_are_refused(tmp_path):
    path = published_rows.write_lines(tmp_path / "a.jsonl", [{"question": SECRET, "answer": "It is 4."}])
    assert "a.jsonl line 1: 'answer' has no number after '####'" in _refusal(gsm8k.rows(path, "test"))


def test_a_report_that_is_missing_or_broken_is_named(tmp_path):
    split = {"study_id": "5", "subject_id": "10000032", "split": "test"}
    table = published_rows.write_csv(tmp_path / "split.csv", [split])
    message = _refusal(radiology.mimic_cxr_rows(tmp_path / "files", table, "test"))
    assert "p10/p10000032/s5.txt: is missing, but split.csv row 1 names it" in message
    published_rows.write_text(tmp_path / "xml/1.xml", f"<eCitation>{SECRET}")
    assert "1.xml: is not XML" in _refusal(radiology.open_i_rows(tmp_path / "xml", split="test"))
