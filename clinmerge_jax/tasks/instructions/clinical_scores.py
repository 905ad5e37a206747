"""Scores of answers to clinical inputs with instructions: the content, and whether the instructions are followed.

Content is compared after removing what the instructions demand, so that following them costs nothing. Case, forbidden
words and forbidden commas are removed from both the answer and the reference. Keys, headings, labels, title,
postscript, placeholders, the required first word of a paragraph and the required end phrase are removed from the
answer, each only where an instruction asks for it.
"""

import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from clinmerge_jax.instructions import notes
from clinmerge_jax.instructions.scores import strict
from clinmerge_jax.instructions.target import InstructionTarget
from clinmerge_jax.metrics.metric import Metric, Output
from clinmerge_jax.metrics.overlap import rouge
from clinmerge_jax.tasks.instructions.compliant import NOTHING, obey
from clinmerge_jax.tasks.task import Item


def content(asked: InstructionTarget, answer: str) -> str:
    """The content of an answer without what the instructions demand, case-folded and on one line.

    Limits: an order of the content that the layout forces (by two headings, say) stays, and so do words used in place
    of forbidden ones. Content in a title or postscript is lost. Anything that an answer adds unasked counts as content.
    """
    kwargs_of = {instruction.id: instruction.kwargs for instruction in asked.instructions}
    for id_, strip in _STRIP.items():
        if id_ in kwargs_of:
            answer = strip(answer, **kwargs_of[id_])
    return _leveled(asked, answer)


def reference_content(asked: InstructionTarget) -> str:
    """The reference answer in the form that `content` is compared with."""
    return _leveled(asked, asked.reference)


def on_reference(metric: Metric) -> Metric:
    """Turn a metric of texts into one that compares contents, with an `InstructionTarget` as the reference."""

    def count(output: Output, asked: InstructionTarget) -> Sequence[float]:
        return metric.count(Output(content(asked, output.text), output.finished), reference_content(asked))

    return Metric(
        f"{metric.name}_content",
        f"{metric.signature}; without what the instructions demand",
        count,
        metric.width,
        metric.score,
        metric.item_score,
    )


def _count(output: Output, asked: InstructionTarget) -> tuple[float, float, float]:
    clinical, items = _CONTENT.count(output, asked)
    return clinical, clinical * all(strict(asked, output.text)), items


_CONTENT = on_reference(rouge("rougeL", stemmed=False))
_COUNTS = Metric("content_and_joint", "sums of content, joint; items", _count, width=3)


def _read(name: str, signature: str, column: int) -> Metric:
    """A metric that is the mean of one column of the counts shared by several metrics."""

    def score(sums: np.ndarray) -> np.ndarray:
        return sums[..., column] / sums[..., 2]

    return Metric(name, signature, _count, width=3, score=score, parts=(_COUNTS,))


CLINICAL = _read(_CONTENT.name, _CONTENT.signature, 0)
JOINT = _read("joint", f"mean of {_CONTENT.name} where all instructions are followed strictly, else 0", 1)


def floors(items: Iterable[Item]) -> dict[str, list[Output]]:
    """Trivial baselines by name: answers made without a model. The last, `obedient reference`, is a ceiling.

    The obedient answers are made by `compliant.obey`. `obedient input` uses the words of the input alone and needs no
    understanding of it.
    """
    made: dict[str, Callable[[Item], str]] = {
        "copy the input": lambda item: item.source,
        "the reference itself": lambda item: item.target.reference,
        "obedient nothing": lambda item: obey(NOTHING, item.target),
        "obedient input": lambda item: obey(item.source, item.target),
        "obedient reference": lambda item: obey(item.target.reference, item.target),
    }
    items = list(items)
    return {name: [Output(answer(item)) for item in items] for name, answer in made.items()}


def _leveled(asked: InstructionTarget, text: str) -> str:
    for instruction in asked.instructions:
        if instruction.id == "keywords:forbidden_words":
            for word in instruction.kwargs["forbidden_words"]:
                text = re.sub(rf"\b{re.escape(word)}\b", " ", text, flags=re.IGNORECASE)
        elif instruction.id == "punctuation:no_comma":
            text = text.replace(",", " ")
    return " ".join(text.casefold().split())


def _json_keys(text: str, keys: Sequence[str]) -> str:
    found = notes.read_object(text)
    if found is None:
        return text
    values = (value if isinstance(value, list) else [value] for value in found.values())
    return " ".join(str(part) for value in values for part in value)


def _headings(text: str, headings: Sequence[str]) -> str:
    wanted = {heading.casefold() for heading in headings}
    return "\n".join(line for line in text.split("\n") if notes.bare_heading(line) not in wanted)


def _end(text: str, end_phrase: str) -> str:
    return re.sub(rf'{re.escape(end_phrase)}["\s]*\Z', "", text, flags=re.IGNORECASE)


def _first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> str:
    paragraphs = text.split("\n\n")
    if nth_paragraph <= len(paragraphs):
        start = rf"\A[\s'\"]*{re.escape(first_word)}\b"
        paragraphs[nth_paragraph - 1] = re.sub(start, "", paragraphs[nth_paragraph - 1], flags=re.IGNORECASE)
    return "\n\n".join(paragraphs)


def _postscript(text: str, postscript_marker: str) -> str:
    """The text before the last postscript marker."""
    marker = postscript_marker.replace(".", r"\.\s?").removesuffix(r"\s?")
    return re.sub(rf"(?s)(.*){marker}.*", r"\1", text, flags=re.IGNORECASE)


# In order of application: markup that only surrounds or divides text is stripped last.
_STRIP: dict[str, Callable[..., str]] = {
    "clinical:json_keys": _json_keys,
    "detectable_content:postscript": _postscript,
    "startend:end_checker": _end,
    "detectable_format:title": lambda text: re.sub(r"<<[^\n]*?>>", " ", text),
    "clinical:headings": _headings,
    "detectable_format:multiple_sections": lambda text, section_spliter, num_sections: re.sub(
        rf"{re.escape(section_spliter)}\s?\d+", " ", text
    ),
    "length_constraints:nth_paragraph_first_word": _first_word,
    "detectable_content:number_placeholders": lambda text, num_placeholders: re.sub(r"\[.*?\]", " ", text),
    "detectable_format:number_bullet_lists": lambda text, num_bullets: re.sub(r"(?m)^\s*[-*]", " ", text),
    "length_constraints:number_paragraphs": lambda text, num_paragraphs: text.replace("***", " "),
    "detectable_format:number_highlighted_sections": lambda text, num_highlights: text.replace("*", ""),
    "startend:quotation": lambda text: text.strip().strip('"'),
}
