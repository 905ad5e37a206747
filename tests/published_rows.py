"""Made-up rows of every data set, in files laid out as its authors publish them."""

import contextlib
import csv
import dataclasses
import gzip
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from unittest import mock

import openpyxl

from clinmerge_jax.data.sets.table import SETS


def without_digests(names: Iterable[str] = tuple(SETS)):
    """A patch of the table for files that only look like the known ones."""

    def bare(part):
        return dataclasses.replace(part, files=tuple(dataclasses.replace(file, sha256="") for file in part.files))

    return mock.patch.dict(
        SETS,
        {
            name: dataclasses.replace(
                SETS[name], splits={split: tuple(map(bare, parts)) for split, parts in SETS[name].splits.items()}
            )
            for name in names
        },
    )


def write_csv(path: pathlib.Path, rows: Sequence[Mapping[str, str]], header: bool = True) -> pathlib.Path:
    """A table, gzipped where its name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if header:
            writer.writeheader()
        writer.writerows(rows)
    return path


def write_lines(path: pathlib.Path, rows: Iterable[object]) -> pathlib.Path:
    """JSON lines."""
    return write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_text(path: pathlib.Path, text: str) -> pathlib.Path:
    """A file in UTF-8, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")
    return path


def write_xlsx(path: pathlib.Path, rows: Iterable[Sequence[object]]) -> pathlib.Path:
    """A workbook of one sheet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(list(row))
    book.save(path)
    return path


NOTE = (
    "CHIEF COMPLAINT\n\nSore knee.\n\nVITALS\n\nPulse 70.\n\nPHYSICAL EXAM\n\nKnee: swollen.\n\nRESULTS\n\n"
    "X-ray without fracture.\n\nASSESSMENT AND PLAN\n\nRest.\n"
)
REPORT = (
    "                                 FINAL REPORT\n EXAMINATION:  CHEST (PA AND LAT)\n \n FINDINGS: \n \n"
    " The lungs are clear.\n No effusion.\n \n IMPRESSION: \n \n No acute disease.\n"
)


def mts_dialog(folder: pathlib.Path) -> None:
    """Under Main-Dataset, as in the repository; one file ends its lines as Windows does."""
    for name in ("TrainingSet", "ValidationSet", "TestSet-1-MEDIQA-Chat-2023", "TestSet-2-MEDIQA-Sum-2023"):
        rows = [
            {
                "ID": str(number),
                "section_header": header,
                "section_text": f"Stated in {name}, line {number}.",
                "dialogue": f"Doctor: What is it?\r\nPatient: Number {number}. ",
            }
            for number, header in enumerate(["GENHX", "ALLERGY"])
        ]
        write_csv(folder / f"Main-Dataset/MTS-Dialog-{name}.csv", rows)


def aci_bench(folder: pathlib.Path) -> None:
    """In the set's own folder; the second note has neither examination nor results."""
    files = ("train", "valid", "clinicalnlp_taskB_test1", "clinicalnlp_taskC_test2", "clef_taskC_test3")
    for place, name in enumerate(files):
        rows = [
            {"dataset": "aci", "encounter_id": f"D2N{place}{number}", "dialogue": "[doctor] hi", "note": note}
            for number, note in enumerate([NOTE, "CC:\n\nCough.\n\nPlan: tea\n"])
        ]
        write_csv(folder / f"aci_bench/{name}.csv", rows)


def open_i(folder: pathlib.Path) -> None:
    """Thirty XML reports, of which the tenth has no findings."""
    for number in range(30):
        findings = f"Clear lungs {number}." if number != 9 else ""
        write_text(
            folder / f"open_i/ecgen-radiology/{number}.xml",
            f'<eCitation><uId id="CXR{number}"/><MedlineCitation><Article><Abstract>'
            f'<AbstractText Label="INDICATION">Cough</AbstractText><AbstractText Label="FINDINGS">{findings}'
            f'</AbstractText><AbstractText Label="IMPRESSION">Normal {number}.</AbstractText>'
            "</Abstract></Article></MedlineCitation></eCitation>",
        )


def mimic_cxr(folder: pathlib.Path) -> None:
    """Two images of one study, one study without findings, and one of each further split."""
    rows = []
    for study, split in (("50", "train"), ("50", "train"), ("51", "train"), ("52", "validate"), ("53", "test")):
        rows.append({"dicom_id": f"x{len(rows)}", "study_id": study, "subject_id": "10000032", "split": split})
        report = REPORT if study != "51" else " IMPRESSION: Stable.\n"
        write_text(folder / f"mimic_cxr/files/p10/p10000032/s{study}.txt", report)
    write_csv(folder / "mimic_cxr/mimic-cxr-2.0.0-split.csv.gz", rows)


def mimic_bhc(folder: pathlib.Path, patients: int = 40) -> None:
    """Two notes of each patient, one longer than the csv module's own limit for fields."""
    rows = [
        {
            "note_id": f"{10000000 + patient}-DS-{note}",
            "input": f"<CHIEF COMPLAINT> Fever {patient}. " * (1 if patient or note else 9000),
            "target": f"Treated {patient}, {note}.",
            "input_tokens": "9",
            "target_tokens": "5",
        }
        for patient in range(patients)
        for note in (1, 2)
    ]
    write_csv(folder / "mimic_bhc/mimic-iv-bhc.csv", rows)


def question_summaries(folder: pathlib.Path) -> None:
    """MeQSum with an empty row at the end, and MEDIQA 2021 with ids that are numbers."""
    rows = [(f"1-{number}.xml.txt", f"SUBJECT: pill {number}", f"What is pill {number}?") for number in range(6)]
    write_xlsx(
        folder / "meqsum/MeQSum_ACL2019_BenAbacha_Demner-Fushman.xlsx",
        [("File", "CHQ", "Summary"), *rows, (None, None, None)],
    )
    columns = ("q_id", "NLM Question", "Summary")
    task = folder / "mediqa2021_qs/Task1"
    write_xlsx(task / "MEDIQA2021-Task1-TestSet-ReferenceSummaries.xlsx", [columns, (96, "A spot?", "What is it?")])
    write_xlsx(
        task / "MEDIQA2021-Task1-QuestionSummarization-ValidationSet.xlsx",
        [(*columns, "Question Focus"), (3, "My knee?", "Is it torn?", "knee")],
    )


def multiple_choice(folder: pathlib.Path) -> None:
    """The authors' own layouts of MedQA, MedMCQA and MMLU."""
    for options, path in ((4, "4_options/phrases_no_exclude_{}.jsonl"), (5, "{}.jsonl")):
        texts = {letter: f"drug {letter}" for letter in "ABCDE"[:options]}
        row = {"question": "Which drug?", "answer": "drug B", "options": texts, "answer_idx": "B"}
        for split in ("train", "dev", "test"):
            write_lines(folder / "medqa/questions/US" / path.format(split), [row, row | {"answer_idx": "D"}])
    row = {"id": "u1", "question": "Which nerve?", "cop": 4, "choice_type": "multi", "subject_name": "Anatomy"}
    row |= {f"op{letter}": f"nerve {letter}" for letter in "abcd"}
    for name in ("train", "dev"):
        write_lines(folder / f"medmcqa/{name}.json", [row])
    for split in ("dev", "val", "test"):
        cells = dict(zip("qabcde", ["Which bone? ", "hip", "rib", "jaw", "shin", "C"]))
        write_csv(folder / f"mmlu/data/{split}/anatomy_{split}.csv", [cells], header=False)


def pubmedqa(folder: pathlib.Path) -> None:
    """Three questions, one of them of the official test."""
    rows = {
        key: {
            "QUESTION": f"Does {key} help?",
            "CONTEXTS": ["We asked.", "We counted."],
            "LONG_ANSWER": "It may.",
            "final_decision": answer,
        }
        for key, answer in (("111", "yes"), ("222", "maybe"), ("333", "no"))
    }
    write_text(folder / "data/ori_pqal.json", json.dumps(rows))
    write_text(folder / "data/test_ground_truth.json", json.dumps({"222": "maybe"}))


def gsm8k(folder: pathlib.Path) -> None:
    """One sum a file."""
    row = {"question": "Two and 1,998?", "answer": "2 + 1998 = <<2+1998=2000>>2000.\n#### 2,000"}
    for split in ("train", "test"):
        write_lines(folder / f"grade_school_math/data/{split}.jsonl", [row])


_FAMILIES = (
    mts_dialog, aci_bench, open_i, mimic_cxr, mimic_bhc, question_summaries, multiple_choice, pubmedqa, gsm8k,
)  # fmt: skip


@contextlib.contextmanager
def all_families(tmp_path_factory):
    """A folder with every data set that this module writes, whose files need not have the published digests."""
    folder = tmp_path_factory.mktemp("published")
    for write in _FAMILIES:
        write(folder)
    with without_digests():
        yield folder
