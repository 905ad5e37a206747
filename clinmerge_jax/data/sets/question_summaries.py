"""Consumer health questions and summaries: MeQSum (Ben Abacha and Demner-Fushman, ACL 2019) and MEDIQA 2021."""

import functools
import pathlib
from collections.abc import Iterator

from clinmerge_jax.data.sets.data_set import DataSet, Part, Row, github
from clinmerge_jax.data.sets.reading import filled, xlsx_rows
from clinmerge_jax.data.sets.splits import by_rank

_MEQSUM = github(
    "meqsum",
    "abachaa/MeQSum",
    "51e36cf65c12602333b6fdc3ae8ecf10430529f7",
    "MeQSum_ACL2019_BenAbacha_Demner-Fushman.xlsx",
    "abedd939d5014306ca576522416bf69103e85dc8fcf1668a4099e8b84a39eeea",
)
_MEDIQA = "mediqa2021_qs", "abachaa/MEDIQA2021", "8d7fe20706dd6af0d089a0252a201c3da78ded8f"
_VALID = github(
    *_MEDIQA,
    "Task1/MEDIQA2021-Task1-QuestionSummarization-ValidationSet.xlsx",
    "6be459891f12bb7d7812d0c2b243ad9e7ae0b178542bab8123a1130312154bb5",
)
_TEST = github(
    *_MEDIQA,
    "Task1/MEDIQA2021-Task1-TestSet-ReferenceSummaries.xlsx",
    "c5d740a64c84deea4960bb0622b1243cab8664b4b2a387c9b497ddbbafbc9b61",
)
_MEQSUM_COLUMNS = ("File", "CHQ", "Summary")
_MEDIQA_COLUMNS = ("q_id", "NLM Question", "Summary")


def rows(path: pathlib.Path, columns: tuple[str, str, str], prefix: str) -> Iterator[Row]:
    """Yields the rows of a workbook.

    Args:
      path: the workbook.
      columns: the columns of id, question and summary.
      prefix: the prefix of the ids.

    Raises:
      BadInput: the file is not such a workbook, or a row is incomplete.
    """
    key, question, summary = columns
    for name, row in xlsx_rows(path, columns):
        own = f"{prefix}-{filled(row, key, name)}"
        text = filled(row, question, name).strip()
        yield Row(own, name, text, filled(row, summary, name).strip(), "question")


def meqsum_rows(path: pathlib.Path, split: str) -> Iterator[Row]:
    """The half of MeQSum that is one split.

    The paper trains on 500 questions and tests on 500 but does not say which; here a hash of the row id,
    which contains the file name, decides.
    """
    found = list(rows(path, _MEQSUM_COLUMNS, "meqsum"))
    splits = by_rank([row.id for row in found], {"train": 0.5, "test": 0.5})
    return (row for row in found if splits[row.id] == split)


SETS = (
    DataSet(
        name="meqsum",
        splits={split: (Part((_MEQSUM,), functools.partial(meqsum_rows, split=split)),) for split in ("train", "test")},
        licence="CC-BY-4.0",
        home="https://github.com/abachaa/MeQSum",
    ),
    DataSet(
        name="mediqa_qs",  # its organizers recommend MeQSum for training
        splits={
            "train": (Part((_MEQSUM,), functools.partial(rows, columns=_MEQSUM_COLUMNS, prefix="meqsum")),),
            "valid": (Part((_VALID,), functools.partial(rows, columns=_MEDIQA_COLUMNS, prefix="valid")),),
            "test": (Part((_TEST,), functools.partial(rows, columns=_MEDIQA_COLUMNS, prefix="test")),),
        },
        licence="CC-BY-4.0",
        home="https://github.com/abachaa/MEDIQA2021",
    ),
)
