"""MIMIC-IV-Ext-BHC: hospital notes and their brief hospital course (Aali et al. 2024); credentialed.

Reads mimic-iv-bhc.csv as published on PhysioNet, with the columns note_id, input, target and two of token counts.
"""

import functools
import pathlib
import re
from collections.abc import Iterator

from clinmerge_jax.data.sets.data_set import DataSet, File, Part, Row
from clinmerge_jax.data.sets.reading import csv_rows, filled
from clinmerge_jax.data.sets.splits import SHARES, by_hash

_FILE = File(("mimic_bhc/mimic-iv-bhc.csv", "labelled-notes-hospital-course/mimic-iv-bhc.csv", "mimic-iv-bhc.csv"))
_NOTE_ID = re.compile(r"(\d+)-DS-\d+", re.ASCII)  # MIMIC-IV-Note ids start with the patient id


def rows(path: pathlib.Path, split: str) -> Iterator[Row]:
    """Yields the rows of a split one at a time, and skips those of other splits.

    The authors publish no split. Here a hash of the patient id assigns 80 % of patients to training, 10 % to validation
    and 10 % to the test, so no patient is in two splits. If a note id does not contain a patient id, the hash is of the
    note id.

    Raises:
      BadInput: the file is not such a table, or a row is incomplete.
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
