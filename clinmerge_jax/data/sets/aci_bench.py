"""ACI-BENCH: transcripts of whole visits and their notes, whole or by division (Yim et al., Scientific Data 2023)."""

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

# Of each division: headings that open it wherever they start a line, and those that must be all of the line, but for a
# colon. Case does not matter.
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
_SUMMARY = re.compile(r"\s*IMPRESSION")  # in capitals alone: in small letters it is part of results


def _spaced(headings: str) -> str:
    """A pattern for headings in which white space may be wider, absent, or before a colon or around a slash."""
    return headings.replace(" ", r"\s*").replace(":", r"\s*:").replace("/", r"\s*/\s*")


_HEADINGS = {
    division: re.compile(rf"\s*(?:(?:{_spaced(opening)})|(?:{_spaced(alone)})\s*$)", re.IGNORECASE)
    for division, (opening, alone) in _DIVISIONS.items()
}


def divide(note: str) -> dict[str, str]:
    """The four divisions of a note, as the authors' own experiments have them (their section tagger and its headings).

    A line that opens with a heading of `_DIVISIONS` starts a section of that division, which goes on to the next such
    line; headings that are not among them (VITALS, MEDICATIONS, INSTRUCTIONS) are part of the section before. The
    sections of one division are joined in the note's order, headings included. What stands before the first heading is
    of no division.

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
    """The rows of one file. The metadata about patient and doctor are in files of their own and stay there.

    Args:
      path: of the table.
      division: of the note that is asked for; "" for the whole. A note without it is left out.

    Raises:
      BadInput: the file is no such table, or a row lacks something.
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
