"""MIMIC-IV-Ext-BHC: hospital notes and their brief hospital course (Aali et al. 2024); credentialed.

The folder holds mimic-iv-bhc.csv as PhysioNet has it, with the columns note_id, input, target and two of token counts.
"""

import functools
import pathlib
import re
from collections.abc import Iterator

from clinmerge_jax.data.sets.data_set import DataSet, File, Part, Row
from clinmerge_jax.data.sets.reading import csv_rows, filled
from clinmerge_jax.data.sets.splits import SHARES, by_hash

_FILE = File(("mimic_bhc/mimic-iv-bhc.csv", "labelled-notes-hospital-course/mimic-iv-bhc.csv", "mimic-iv-bhc.csv"))
_NOTE_ID = re.compile(r"(\d+)-DS-\d+", re.ASCII)  # of MIMIC-IV-Note: the patient comes first


def rows(path: pathlib.Path, split: str) -> Iterator[Row]:
    """The rows of a split, one at a time; those of other splits are passed over.

    The authors publish no split. Here 80 % of patients are for training, 10 % for validation and 10 % for the test, by
    a hash of the patient, so that no patient is in two; where a note's id does not name one, by a hash of the note.

    Raises:
      BadInput: the file is no such table, or a row lacks something.
    """
    for name, row in csv_rows(path, ["note_id", "input", "target"]):
        note = filled(row, "note_id", name)
        named = _NOTE_ID.fullmatch(note)
        patient = named[1] if named else note
        if by_hash(patient) == split:
            text, course = filled(row, "input", name).strip(), filled(row, "target", name).strip()
            yield Row(note, name, text, course, "note", cluster=patient)


SETS = (
    DataSet(
        name="mimic_bhc",
        splits={split: (Part((_FILE,), functools.partial(rows, split=split)),) for split in SHARES},
        licence="PhysioNet Credentialed Health Data License 1.5.0",
        home="https://physionet.org/content/labelled-notes-hospital-course/, under its data use agreement",
    ),
)
