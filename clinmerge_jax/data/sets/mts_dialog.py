"""MTS-Dialog: short doctor-patient conversations, each with a note section (Ben Abacha et al., EACL 2023)."""

import functools
import pathlib
from collections.abc import Iterator

from clinmerge_jax.data.sets.data_set import DataSet, Part, Row, github
from clinmerge_jax.data.sets.reading import csv_rows, filled

_COMMIT = "3ff0801933608d6f570468c13125125fb5cabdea"
_FILES = {
    "train": ("TrainingSet", "65a28681dd59fc159681ea026e44610f2af7bc64a0e7f892d763eb03d9f503dc"),
    "valid": ("ValidationSet", "227206520c4534381c0d7fba6d3f09319a9af5a6d9603a93c0341af1198e3958"),
    "test1": ("TestSet-1-MEDIQA-Chat-2023", "b4d38dd2c99b2e9860099abcf653f1e0f3e9b69f9fcc45be2a2699b37a4d2f37"),
    "test2": ("TestSet-2-MEDIQA-Sum-2023", "226644466ed3af82382b327a3e684aab70aa605b96cfd93b04f584f1826ab1a6"),
}


def rows(path: pathlib.Path, split: str) -> Iterator[Row]:
    """Yields the rows of one file; a row's class is its section header.

    Raises:
      BadInput: the file is not such a table, or a row is incomplete.
    """
    for name, row in csv_rows(path, ["ID", "section_header", "section_text", "dialogue"]):
        header = filled(row, "section_header", name)
        yield Row(
            id=f"{split}-{filled(row, 'ID', name)}",
            name=name,
            input=filled(row, "dialogue", name).strip(),
            output=filled(row, "section_text", name).strip(),
            input_name="dialogue",
            fields={"section_header": header},
            label=header,
        )


def _part(split: str, name: str, sha256: str) -> Part:
    file = github("mts_dialog", "abachaa/MTS-Dialog", _COMMIT, f"Main-Dataset/MTS-Dialog-{name}.csv", sha256)
    return Part((file,), functools.partial(rows, split=split))


SETS = (
    DataSet(
        name="mts_dialog",
        splits={split: (_part(split, *file),) for split, file in _FILES.items()},
        licence="CC-BY-4.0",
        home="https://github.com/abachaa/MTS-Dialog",
    ),
)
