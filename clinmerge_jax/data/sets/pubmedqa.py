"""PubMedQA: yes/no/maybe questions on abstracts (Jin et al., EMNLP 2019), the 1,000 labelled by experts."""

import functools
import pathlib
from collections.abc import Iterator

from clinmerge_jax.data.sets.data_set import DataSet, Part, Row, github
from clinmerge_jax.data.sets.reading import LETTERS, filled, json_object
from clinmerge_jax.errors import BadInput

ANSWERS = ("yes", "no", "maybe")

_REPOSITORY = "pubmedqa/pubmedqa", "1cbae8e92f72f20c8d3747cbb3bf5bc53554d997"
_FILES = (
    github(
        "pubmedqa", *_REPOSITORY, "data/ori_pqal.json",
        "8b3276be8942ebbd77f3ddcda12c1749bf0e490045a736fd8438ee40cf37a41d",
    ),
    github(
        "pubmedqa", *_REPOSITORY, "data/test_ground_truth.json",
        "939fe566f09017d13b1ca64d2ddfee0bc2374b366048152997669cccedc44d51",
    ),
)  # fmt: skip


def rows(path: pathlib.Path, truth: pathlib.Path, split: str) -> Iterator[Row]:
    """Yields the rows of a split; the input is the abstract without its conclusion.

    Args:
      path: all labelled questions by PubMed id.
      truth: the answers to the official test set; the other questions are the training set.
      split: train or test.

    Raises:
      BadInput: a file is not such an object, a row is incomplete, or the two files differ in an answer.
    """
    questions, tested = json_object(path), json_object(truth)
    unknown = [key for key in tested if key not in questions]
    if unknown:
        raise BadInput(f"{truth}: names {unknown[0]}, which is not in {path}; get both again from their authors")
    for key, row in questions.items():
        if (key in tested) != (split == "test"):
            continue
        name = f"{path.name} {key}"
        answer = filled(row, "final_decision", name)
        if answer not in ANSWERS or tested.get(key, answer) != answer:
            raise BadInput(
                f"{name}: its answer is missing or differs from that in {truth.name}; get both again from their authors"
            )
        contexts = row.get("CONTEXTS")
        if not isinstance(contexts, list) or not contexts:
            raise BadInput(f"{name}: 'CONTEXTS' is not a list of texts; get the file again from its authors")
        letter = LETTERS[ANSWERS.index(answer)]
        yield Row(
            id=key,
            name=name,
            input="\n".join(map(str, contexts)),
            output=letter,
            input_name="abstract",
            fields={"question": filled(row, "QUESTION", name)},
            choices=ANSWERS,
            label=letter,
        )


SETS = (
    DataSet(
        name="pubmedqa",
        splits={split: (Part(_FILES, functools.partial(rows, split=split)),) for split in ("train", "test")},
        licence="MIT",
        home="https://github.com/pubmedqa/pubmedqa",
    ),
)
