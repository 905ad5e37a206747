"""The 25 kinds of instructions of IFEval (arXiv 2311.07911) and their checkers, and the validation of instructions.

A kind is one row of `CHECKERS`, of `ifbench.checkers.IFBENCH` or of `notes.CLINICAL`. A checker is a pure function of a
response and of the kind's arguments. The annotated types of these arguments are the schema that data are validated
against when they are read.

The checkers of IFEval follow the definitions in its paper and the wording of its prompts. Where these leave a choice,
the verdict is that of the authors' program, so that scores are comparable.
"""

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

from clinmerge_jax.errors import BadInput
from clinmerge_jax.instructions import (
    case,
    combination,
    content,
    edges,
    keywords,
    language,
    length,
    markup,
)
from clinmerge_jax.instructions.target import Instruction

Checker = Callable[..., bool]

CHECKERS: dict[str, Checker] = {
    "keywords:existence": keywords.existence,
    "keywords:frequency": keywords.frequency,
    "keywords:forbidden_words": keywords.forbidden_words,
    "keywords:letter_frequency": keywords.letter_frequency,
    "language:response_language": language.response_language,
    "length_constraints:number_words": length.number_words,
    "length_constraints:number_sentences": length.number_sentences,
    "length_constraints:number_paragraphs": length.number_paragraphs,
    "length_constraints:nth_paragraph_first_word": length.nth_paragraph_first_word,
    "detectable_content:number_placeholders": content.number_placeholders,
    "detectable_content:postscript": content.postscript,
    "detectable_format:number_bullet_lists": markup.number_bullet_lists,
    "detectable_format:constrained_response": markup.constrained_response,
    "detectable_format:number_highlighted_sections": markup.number_highlighted_sections,
    "detectable_format:multiple_sections": markup.multiple_sections,
    "detectable_format:json_format": markup.json_format,
    "detectable_format:title": markup.title,
    "combination:two_responses": combination.two_responses,
    "combination:repeat_prompt": combination.repeat_prompt,
    "startend:end_checker": edges.end_checker,
    "startend:quotation": edges.quotation,
    "change_case:capital_word_frequency": case.capital_word_frequency,
    "change_case:english_capital": case.english_capital,
    "change_case:english_lowercase": case.english_lowercase,
    "punctuation:no_comma": case.no_comma,
}


def instruction(
    kind: str, given: Mapping[str, Any], name: str, checkers: Mapping[str, Checker] = CHECKERS
) -> Instruction:
    """Make an instruction from data, validated against its checker's arguments.

    Args:
      kind: the id of its kind.
      given: the arguments; None means that an argument is not given. Whole numbers may be written as 5.0.
      name: name of the row, for messages.
      checkers: the known kinds.

    Raises:
      BadInput: the kind is unknown, or an argument is missing, unknown or of the wrong type.
    """
    if kind not in checkers:
        raise BadInput(f"{name}: the instruction {kind!r} is unknown; give one of {', '.join(checkers)}")
    due = typing.get_type_hints(checkers[kind])
    names = [key for key in inspect.signature(checkers[kind]).parameters if key != "response"]
    kwargs = {key: value for key, value in given.items() if value is not None}
    if sorted(kwargs) != sorted(names):
        raise BadInput(f"{name}: {kind} has {_listed(kwargs)} but takes {_listed(names)}; give exactly these")
    return Instruction(kind, {key: _read(kwargs[key], due[key], f"{name}: {kind}: {key}") for key in names})


def _read(value: Any, due: Any, name: str) -> Any:
    if due is int:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value // 1 or value < 0:
            raise BadInput(f"{name} is {value!r}; give a whole number from 0 on")
        return int(value)
    if due is str:
        if not isinstance(value, str) or not value.strip():
            raise BadInput(f"{name} is {value!r}; give text")
        return value
    if due is language.Language:
        if value not in language.languages():
            raise BadInput(f"{name} is {value!r}; give one of {', '.join(sorted(language.languages()))}")
        return value
    options = typing.get_args(due)
    if typing.get_origin(due) is typing.Literal:
        if value not in options:
            raise BadInput(f"{name} is {value!r}; give one of {', '.join(options)}")
        return value
    if not isinstance(value, (list, tuple)) or not value:
        raise BadInput(f"{name} is {value!r}; give a list of texts")
    return tuple(_read(part, options[0], name) for part in value)


def _listed(names: typing.Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "no arguments"
