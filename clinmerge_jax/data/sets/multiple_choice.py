"""Medical questions with lettered options: MedQA, MedMCQA and six subjects of MMLU.

MedQA: Jin et al., Applied Sciences 2021. MedMCQA: Pal et al., CHIL 2022. MMLU: Hendrycks et al., ICLR 2021. Each is
read in its authors' layout, or as the test sets of MedAgentsBench (Tang et al. 2025), which may be downloaded.
"""

import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from clinmerge_jax.data.sets.data_set import DataSet, File, Part, Row, github
from clinmerge_jax.data.sets.reading import LETTERS, csv_rows, filled, json_lines, letter
from clinmerge_jax.errors import BadInput

SUBJECTS = (
    "anatomy",
    "clinical_knowledge",
    "college_biology",
    "college_medicine",
    "medical_genetics",
    "professional_medicine",
)

_MIRROR = "gersteinlab/medagents-benchmark", "f5e50b69be8ef617a6de613cc8035929448e2b3b"
_MEDQA_4 = "b0536be0ff396be91eb0cf61a42056b0abef06a23e7e8be491d62fd959b77b72"
_MEDQA_5 = "cfa75cbcc53c29b023752b0a395ff49d8202121041392735ae44771a5ec734a3"
_MEDMCQA = "06193ed891b1f4ce1b93b3416f52ec731e8c7134b17a000f9219c031a929d716"
_MMLU = "d1ac8949044ccd412b883b90ba918933531f5eaefb40166673c4989fa1bbf1b9"


def lettered_rows(path: pathlib.Path, split: str, options: int, subject: str = "", key: str = "") -> Iterator[Row]:
    """Yields rows with `question`, `options` by letter and `answer_idx`: MedQA's own files, and MedAgentsBench's.

    Args:
      path: JSON lines.
      split: the split name, used in ids.
      options: the number of options of each question.
      subject: only rows of this subject are taken; "" for all.
      key: the field that holds the id; "" makes ids of the split and the row number from 0.

    Raises:
      BadInput: a row is incomplete or has other options.
    """
    of_subject = ((name, row) for name, row in json_lines(path) if not subject or row.get("subject") == subject)
    for number, (name, row) in enumerate(of_subject):
        texts = row.get("options")
        if not isinstance(texts, dict) or sorted(texts) != list(LETTERS[:options]):
            raise BadInput(
                f"{name}: 'options' are not {options} texts keyed by letter; get the file again from its authors"
            )
        choices = [filled(texts, key, name) for key in sorted(texts)]
        own = filled(row, key, name) if key else f"{split}-{number}"
        yield _row(own, name, filled(row, "question", name), choices, row.get("answer_idx"))


def medmcqa_rows(path: pathlib.Path) -> Iterator[Row]:
    """Yields MedMCQA's rows: JSON lines with `id`, `question`, `opa` to `opd`, and `cop`, the correct option from 1.

    Questions of both kinds (`choice_type` single and multi) are taken, as is common; all have one correct option.
    MedAgentsBench has the 2,816 single ones of the 4,183 in dev.json.

    Raises:
      BadInput: a row is incomplete.
    """
    for name, row in json_lines(path):
        choices = [filled(row, f"op{one}", name) for one in "abcd"]
        right = row.get("cop")
        right = right - 1 if isinstance(right, int) else None
        yield _row(filled(row, "id", name), name, filled(row, "question", name), choices, right)


def mmlu_rows(path: pathlib.Path, split: str) -> Iterator[Row]:
    """Yields MMLU's rows: question, four options and a letter, in a table without a header.

    Raises:
      BadInput: the file is not such a table, or a row is incomplete.
    """
    columns = ["question", *LETTERS[:4], "answer"]
    for number, (name, row) in enumerate(csv_rows(path, columns, header=False)):
        choices = [filled(row, one, name) for one in LETTERS[:4]]
        yield _row(f"{split}-{number}", name, filled(row, "question", name).strip(), choices, row["answer"])


def _row(key: str, name: str, question: str, choices: Sequence[str], right: Any) -> Row:
    """Makes a row whose class is its answer letter, so that few-shot examples are balanced over the letters."""
    output = letter(right, len(choices), name)
    return Row(key, name, question, output, "question", choices=tuple(choices), label=output)


def _medqa(options: int, sha256: str, mirrored: str, name: str) -> DataSet:
    published = {4: "4_options/phrases_no_exclude_{}.jsonl", 5: "{}.jsonl"}[options]

    def part(split: str, file: str) -> Part:
        below = f"questions/US/{published.format(file)}"
        paths = (f"medqa/{below}", f"medqa/data_clean/{below}", f"MedQA/data_clean/{below}", f"data_clean/{below}")
        return Part((File(paths),), functools.partial(lettered_rows, split=split, options=options))

    mirror = Part(
        (github("medqa", *_MIRROR, mirrored, sha256, name),),
        functools.partial(lettered_rows, split="test", options=options),
    )
    return DataSet(
        name=f"medqa_{options}options",
        splits={
            "train": (part("train", "train"),),
            "valid": (part("valid", "dev"),),
            "test": (part("test", "test"), mirror),
        },
        licence="MIT",
        home="https://github.com/jind11/MedQA",
    )


def _medmcqa() -> DataSet:
    def part(file: str) -> Part:
        paths = (f"medmcqa/{file}", f"medmcqa/data/{file}")
        return Part((File(paths),), medmcqa_rows)

    mirror = Part(
        (github("medmcqa", *_MIRROR, "data/medmcqa/test.jsonl", _MEDMCQA),),
        functools.partial(lettered_rows, split="test", options=4, key="realidx"),
    )
    return DataSet(
        name="medmcqa",
        splits={"train": (part("train.json"),), "test": (part("dev.json"), mirror)},
        licence="MIT",
        home="https://github.com/medmcqa/medmcqa",
    )


def _mmlu(subject: str) -> DataSet:
    def part(split: str, file: str) -> Part:
        below = f"{file}/{subject}_{file}.csv"
        paths = (f"mmlu/{below}", f"mmlu/data/{below}", f"mmlu/{subject}_{file}.csv", f"data/{below}")
        return Part((File(paths),), functools.partial(mmlu_rows, split=split))

    mirror = Part(
        (github("mmlu_medical", *_MIRROR, "data/mmlu/test.jsonl", _MMLU),),
        functools.partial(lettered_rows, split="test", options=4, subject=subject),
    )
    return DataSet(
        name=f"mmlu_{subject}",
        splits={
            "train": (part("train", "dev"),),
            "valid": (part("valid", "val"),),
            "test": (part("test", "test"), mirror),
        },
        licence="MIT",
        home="https://people.eecs.berkeley.edu/~hendrycks/data.tar",
    )


SETS = (
    _medqa(4, _MEDQA_4, "data/medqa/test.jsonl", "test.jsonl"),
    _medqa(5, _MEDQA_5, "data/medqa_5options/test.jsonl", "test_5options.jsonl"),
    _medmcqa(),
    *map(_mmlu, SUBJECTS),
)
