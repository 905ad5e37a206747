"""ACI-BENCH: transcripts of visits with full notes or note divisions (Yim et al., Scientific Data 2023)."""

import functools
import pathlib
import re
from collections.abc import Iterator

from clinmerge_jax.data.sets.data_set import DataSet, Part, Row, github
from clinmerge_jax.data.sets.reading import csv_rows, filled

_COMMIT = "b909b2bb9cf1d19de08df15cddde7bd0179665e4"
_FILES = {
    "train": ("train", "6c778d4ac5e6cc6f1964786f9286e8d765c210f22ed6b57f83aff8497409cea4"),
    "valid": ("valid", "6629e89e3fb409d2b3eceab60dc7b32fe1d3fb8d4e07795039284965522aa4d0"),
    "test1": ("clinicalnlp_taskB_test1", "5cc4008e68545f84913744a8e493a58bdf17ba7e1b7a0be46d6943d6bfca9471"),
    "test2": ("clinicalnlp_taskC_test2", "599e3330a14e25a0e056aee1365ffac7ebe50058f15821eae42a5513c2bb5a4f"),
    "test3": ("clef_taskC_test3", "d3c18362a42124ea2bd1b2b4b66ba76a11bb123dfdb416471ae3b5924d1428ec"),
}

# For each division: headings that open it at the start of a line, and headings that must be the whole line. Matching
# ignores case.
_DIVISIONS = {
    "subjective": (
        "chief complaint|history of present illness|social history|past history|hpi|cc:|reason for visit:|history:"
        "|hpi notes:|interval history:|interval hx:|subjective:|ros:|review of systems?:",
        "cc|reason for visit|history|hpi notes|interval history|interval hx|subjective|ros|review of systems?",
    ),
    "objective_exam": (
        "physical examination|physical exam|vitals reviewed|pe:|physical findings:|examination:|exam:",
        "pe|physical findings|examination|exam",
    ),
    "objective_results": ("results|findings:", "findings"),
    "assessment_and_plan": (
        "assessment and plan|summary plan|assessment:|a:|plan:|plan of care:|p:|medical decision-making plan:|ap:|a/p:"
        "|assessment & plan:|disposition/plan:",
        "assessment|a|plan|plan of care|p|medical decision-making plan|ap|a/p|assessment & plan|disposition/plan",
    ),
}
_SUMMARY = re.compile(r"\s*IMPRESSION")  # only in capitals: in lower case it belongs to the results


def _spaced(headings: str) -> str:
    """A pattern for headings with any or no white space for each space, before colons and around slashes."""
    return headings.replace(" ", r"\s*").replace(":", r"\s*:").replace("/", r"\s*/\s*")


_HEADINGS = {
    division: re.compile(rf"\s*(?:(?:{_spaced(opening)})|(?:{_spaced(alone)})\s*$)", re.IGNORECASE)
    for division, (opening, alone) in _DIVISIONS.items()
}


def divide(note: str) -> dict[str, str]:
    """Splits a note into the four divisions of the authors' experiments (their section tagger and its headings).

    A line that starts with a heading of `_DIVISIONS` begins a section of that division, which extends to the next such
    line. Other headings (VITALS, MEDICATIONS, INSTRUCTIONS) belong to the section before them. The sections of one
    division are joined in the note's order, headings included. Text before the first heading belongs to no division.

    Returns:
      The text of each division, "" where the note has none.
    """
    texts = dict.fromkeys(_DIVISIONS, "")
    division = None
    for line in note.splitlines(keepends=True):
        opened = next((name for name, heading in _HEADINGS.items() if heading.match(line)), None)
        division = opened or ("assessment_and_plan" if _SUMMARY.match(line) else division)
        if division is not None:
            texts[division] += line
    return texts


def rows(path: pathlib.Path, division: str = "") -> Iterator[Row | None]:
    """Yields the rows of one file. Metadata about patient and doctor are in separate files and are not read.

    Args:
      path: the table.
      division: the note division to use as output; "" for the whole note. Notes without it are left out.

    Raises:
      BadInput: the file is not such a table, or a row is incomplete.
    """
    for name, row in csv_rows(path, ["encounter_id", "dialogue", "note"]):
        encounter = filled(row, "encounter_id", name)
        dialogue, note = filled(row, "dialogue", name).strip(), filled(row, "note", name)
        output = (divide(note)[division] if division else note).strip()
        yield Row(encounter, name, dialogue, output, "dialogue", cluster=encounter) if output else None


def _data_set(division: str = "") -> DataSet:
    def part(file: str, sha256: str) -> Part:
        path = f"data/challenge_data/{file}.csv"
        published = github("aci_bench", "wyim/aci-bench", _COMMIT, path, sha256)
        return Part((published,), functools.partial(rows, division=division))

    return DataSet(
        name=f"aci_bench_{division}" if division else "aci_bench",
        splits={split: (part(*file),) for split, file in _FILES.items()},
        licence="CC-BY-4.0",
        home="https://github.com/wyim/aci-bench",
        left_out="notes without that division" if division else "none",
    )


SETS = (_data_set(), *map(_data_set, _DIVISIONS))
