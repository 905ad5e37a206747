"""GSM8K: grade-school math word problems with worked answers (Cobbe et al. 2021)."""

import functools
import pathlib
import re
from collections.abc import Iterator

from clinmerge_jax.data.sets.data_set import DataSet, Part, Row, github
from clinmerge_jax.data.sets.reading import filled, json_lines
from clinmerge_jax.errors import BadInput

_COMMIT = "3101c7d5072418e28b9008a6636bde82a006892c"
_FILES = {
    "train": "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
    "test": "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
}
_NUMBER = r"(?:(?<![\w)])-)?\$?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?:(?<![\w)])-)?\$?(?<!\d)\.\d+"
_MARKED = re.compile(rf"####\s*({_NUMBER})")
_ANY = re.compile(_NUMBER)


def final_number(answer: str) -> str:
    """The final number of an answer: the last after "####", otherwise the last of all; "" if there is none.

    The number is normalised: no thousands separators, no dollar sign, no trailing zeros after the decimal point.
    """
    found = _MARKED.findall(answer) or _ANY.findall(answer)
    if not found:
        return ""
    plain = found[-1].replace(",", "").replace("$", "")
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def rows(path: pathlib.Path, split: str) -> Iterator[Row]:
    """Yields the rows of one file. The output is the final number; few-shot examples show the published working.

    Raises:
      BadInput: a row is incomplete, or its answer has no number after "####".
    """
    for number, (name, row) in enumerate(json_lines(path)):
        worked = filled(row, "answer", name)
        if not _MARKED.search(worked):
            raise BadInput(f"{name}: 'answer' has no number after '####'; get the file again from its authors")
        question = filled(row, "question", name)
        yield Row(f"{split}-{number}", name, question, final_number(worked), "question", shown=worked)


def _part(split: str, sha256: str) -> Part:
    path = f"grade_school_math/data/{split}.jsonl"
    file = github("gsm8k", "openai/grade-school-math", _COMMIT, path, sha256)
    return Part((file,), functools.partial(rows, split=split))


SETS = (
    DataSet(
        name="gsm8k",
        splits={split: (_part(split, sha256),) for split, sha256 in _FILES.items()},
        licence="MIT",
        home="https://github.com/openai/grade-school-math",
    ),
)
