"""Chest radiograph reports: findings and impressions.

Open-i: Demner-Fushman et al., JAMIA 2016. MIMIC-CXR: Johnson et al., Scientific Data 2019; credentialed.
"""

import functools
import pathlib
import re
from collections.abc import Iterator
from xml.etree import ElementTree

from clinmerge_jax.data.sets.data_set import DataSet, File, Part, Row
from clinmerge_jax.data.sets.reading import csv_rows, filled
from clinmerge_jax.data.sets.splits import SHARES, by_rank
from clinmerge_jax.errors import BadInput

_HEADING = re.compile(r"^[ \t]*([A-Z][A-Z ,/()&-]*):", re.MULTILINE)
_SPLITS = {"train": "train", "valid": "validate", "test": "test"}  # to the names in MIMIC-CXR


def open_i_rows(reports: pathlib.Path, given: pathlib.Path | None = None, *, split: str) -> Iterator[Row | None]:
    """Yields Open-i's reports of one split.

    Reports without findings or without an impression are left out; they are counted as left out in every split. Without
    a file of splits, the usable reports are divided into 80 %, 10 % and the rest by the rank of their ids' hashes. This
    gives the sizes 2,735, 341 and 343 of Van Veen et al. (2024) if the number of usable reports is the same.

    Args:
      reports: the folder of XML files, or the table with the columns uid, findings and impression.
      given: a table with the columns uid and split for the reports to use; None for the rule above.
      split: train, valid or test.

    Raises:
      BadInput: a file is malformed.
    """
    read = _xml_reports(reports) if reports.is_dir() else _table_reports(reports)
    found = {uid: (name, findings, impression) for uid, name, findings, impression in read}
    usable = {uid for uid, (_, findings, impression) in found.items() if findings and impression}
    if given is None:
        splits = by_rank(usable, SHARES)
    else:
        splits = {
            filled(row, "uid", name): filled(row, "split", name) for name, row in csv_rows(given, ["uid", "split"])
        }
        unknown = [name for name in splits.values() if name not in SHARES]
        if unknown:
            raise BadInput(f"{given}: {unknown[0]!r} is not a split; choose from {', '.join(SHARES)}")
    for uid, (name, findings, impression) in found.items():
        if uid not in usable:
            yield None
        elif splits.get(uid) == split:
            yield Row(uid, name, findings, impression, "findings")


def _xml_reports(folder: pathlib.Path) -> Iterator[tuple[str, str, str, str]]:
    """Yields id, name, findings and impression of each `*.xml`, in numerical order."""
    for path in sorted(folder.glob("*.xml"), key=lambda path: (len(path.stem), path.stem)):
        try:
            tree = ElementTree.parse(path)
        except ElementTree.ParseError as error:
            raise BadInput(f"{path}: is not XML; get the file again from Open-i") from error
        texts = {one.get("Label"): "".join(one.itertext()).strip() for one in tree.iter("AbstractText")}
        yield path.stem, path.name, texts.get("FINDINGS", ""), texts.get("IMPRESSION", "")


def _table_reports(path: pathlib.Path) -> Iterator[tuple[str, str, str, str]]:
    for name, row in csv_rows(path, ["uid", "findings", "impression"]):
        yield filled(row, "uid", name), name, row["findings"].strip(), row["impression"].strip()


def sections(report: str) -> dict[str, str]:
    """The sections of a MIMIC-CXR report by heading; a heading is capitals and a colon at the start of a line.

    Of sections with the same heading, the first that is not empty is taken. White space is collapsed.
    """
    found: dict[str, str] = {}
    headings = list(_HEADING.finditer(report))
    for heading, following in zip(headings, [*headings[1:], None]):
        text = " ".join(report[heading.end() : following.start() if following else None].split())
        found[heading[1]] = found.get(heading[1]) or text
    return found


def mimic_cxr_rows(reports: pathlib.Path, given: pathlib.Path, split: str) -> Iterator[Row | None]:
    """Yields MIMIC-CXR's reports of one official split; those without FINDINGS or IMPRESSION are left out.

    Args:
      reports: the folder `files` of mimic-cxr-reports, with p10/p10000032/s50414267.txt and so on.
      given: mimic-cxr-2.0.0-split.csv, plain or gzipped, with one row per image.
      split: train, valid or test.

    Raises:
      BadInput: a file is missing or malformed.
    """
    seen = set()
    for name, row in csv_rows(given, ["study_id", "subject_id", "split"]):
        study, patient = filled(row, "study_id", name), filled(row, "subject_id", name)
        if row["split"] != _SPLITS[split] or study in seen:
            continue
        seen.add(study)
        path = reports / f"p{patient[:2]}" / f"p{patient}" / f"s{study}.txt"
        try:
            found = sections(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise BadInput(f"{path}: is missing, but {name} names it; unpack mimic-cxr-reports.zip again") from error
        except UnicodeDecodeError as error:
            raise BadInput(f"{path}: is not UTF-8 at byte {error.start}; unpack mimic-cxr-reports.zip again") from error
        findings, impression = found.get("FINDINGS", ""), found.get("IMPRESSION", "")
        usable = findings and impression
        yield Row(study, f"s{study}.txt", findings, impression, "findings", cluster=patient) if usable else None


def _open_i() -> DataSet:
    reports = (
        File(("open_i/ecgen-radiology", "ecgen-radiology", "open_i/indiana_reports.csv", "indiana_reports.csv")),
    )
    given = File(("open_i/splits.csv",))

    def parts(split: str) -> tuple[Part, ...]:
        parse = functools.partial(open_i_rows, split=split)
        return Part((*reports, given), parse), Part(reports, parse)

    return DataSet(
        name="open_i",
        splits={split: parts(split) for split in SHARES},
        licence="CC-BY-NC-ND-4.0",
        home="https://openi.nlm.nih.gov/faq (NLMCXR_reports.tgz, or as the table indiana_reports.csv), under its terms",
        left_out="reports without findings or without an impression",
    )


def _mimic_cxr() -> DataSet:
    table = "mimic-cxr-2.0.0-split.csv"
    files = (
        File(("mimic_cxr/files", "mimic_cxr/mimic-cxr-reports/files", "mimic-cxr-reports/files", "files")),
        File((f"mimic_cxr/{table}", f"mimic_cxr/{table}.gz", table, f"{table}.gz")),
    )
    return DataSet(
        name="mimic_cxr",
        splits={split: (Part(files, functools.partial(mimic_cxr_rows, split=split)),) for split in _SPLITS},
        licence="PhysioNet Credentialed Health Data License 1.5.0",
        home="https://physionet.org/content/mimic-cxr/ and mimic-cxr-jpg/, under their data use agreements",
        left_out="reports without FINDINGS or without IMPRESSION",
    )


SETS = (_open_i(), _mimic_cxr())
