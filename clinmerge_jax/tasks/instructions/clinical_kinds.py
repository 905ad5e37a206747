"""The kinds of instructions of the clinical set, with arguments drawn so that a good summary can follow them.

The development and test splits share kinds but not words: each has wordings, phrases and keys of its own. Headings and
postscripts are asked for in the test split alone.
"""

import dataclasses
import functools
import random
import re
from collections.abc import Callable

from clinmerge_jax.instructions.counting import sentences, words
from clinmerge_jax.seeded import between, pick, sample
from clinmerge_jax.tasks.instructions.kinds import Arguments, Kind, no_arguments

# Words frequent in clinical text whose absence costs no content.
GENERAL = (
    "patient", "reports", "reported", "states", "stated", "denies", "denied", "presents", "presented", "complains",
    "history", "past", "currently", "noted", "normal", "positive", "negative", "today", "doctor", "daily", "pain",
    "what", "how", "treatment", "treatments", "causes", "information", "should", "there", "have", "with", "please",
)  # fmt: skip
_FUNCTION_WORDS = (
    "about", "after", "before", "being", "could", "every", "other", "their", "these", "those", "until", "where",
    "which", "while", "would",
)  # fmt: skip
_CLOSINGS = {
    "dev": ("Dictated but not read.", "Nothing further for now."),
    "test": ("End of summary.", "Please call with any questions.", "Checked and complete."),
}
_OPENINGS = {"dev": ("overall", "briefly"), "test": ("summary", "notably", "clinically")}
_LABELS = {"dev": ("Item", "Block"), "test": ("SECTION", "Part")}
_KEYS = {
    "dev": (("text",), ("main", "other")),
    "test": (("summary",), ("key_point", "details"), ("first", "second", "third")),
}
_HEADINGS = (("Main point", "Details"), ("In brief", "In full"), ("First", "Second", "Third"))
_CONTENT_WORD = re.compile(r"\b[a-z]{5,}\b")


@dataclasses.dataclass(frozen=True)
class Case:
    """The subject that instructions are drawn for: the input, its reference answer, and the split, "dev" or "test"."""

    source: str
    reference: str
    split: str

    @functools.cached_property
    def length(self) -> int:
        """The number of words of the reference."""
        return len(words(self.reference))

    @functools.cached_property
    def shared(self) -> list[str]:
        """Content words in both input and reference, so that requiring one reveals nothing about the reference."""
        source, reference = (set(_CONTENT_WORD.findall(text)) for text in (self.source, self.reference))
        return sorted(source & reference - {*GENERAL, *_FUNCTION_WORDS})

    @functools.cached_property
    def leaned_on(self) -> list[str]:
        """General words in the reference or, if it has none, in the input: an unconstrained answer would use them."""
        for text in (self.reference, self.source):
            if found := sorted(set(GENERAL) & set(words(text.lower()))):
                return found
        return []


def _number(name: str, low: int, high: int, words_each: int) -> Callable[[random.Random, Case], Arguments | None]:
    """Make a `Kind.draw` for a number of parts, limited so that the reference has `words_each` words for each part."""

    def draw(rng: random.Random, case: Case) -> Arguments | None:
        most = min(high, case.length // words_each)
        return {name: between(rng, low, most)} if most >= low else None

    return draw


def _some(name: str, options: str) -> Callable[[random.Random, Case], Arguments | None]:
    def draw(rng: random.Random, case: Case) -> Arguments | None:
        found = getattr(case, options)
        return {name: tuple(sample(rng, found, between(rng, 1, min(2, len(found)))))} if found else None

    return draw


def _few_words(rng: random.Random, case: Case) -> Arguments:
    """A limit on words, drawn between the length of the reference and a third more, plus a margin of a few words."""
    return {"relation": "less than", "num_words": 4 + int(case.length * (1 + rng.random() / 3))}


def _few_sentences(rng: random.Random, case: Case) -> Arguments:
    return {"relation": "less than", "num_sentences": max(2, len(sentences(case.reference)) + between(rng, 0, 2))}


def _first_word(rng: random.Random, case: Case) -> Arguments | None:
    number = _number("num_paragraphs", 2, 3, words_each=6)(rng, case)
    word = pick(rng, _OPENINGS[case.split])
    if number is None or word in words(f"{case.source} {case.reference}".lower()):
        return None
    return {**number, "nth_paragraph": between(rng, 1, number["num_paragraphs"]), "first_word": word}


def _sections(rng: random.Random, case: Case) -> Arguments | None:
    number = _number("num_sections", 2, 4, words_each=12)(rng, case)
    return number and {"section_spliter": pick(rng, _LABELS[case.split]), **number}


def _names(name: str, options: tuple[tuple[str, ...], ...], rng: random.Random, case: Case) -> Arguments | None:
    fitting = [option for option in options if len(option) * 8 <= case.length]
    return {name: pick(rng, fitting)} if fitting else None


# id, draw, wordings of development, wordings of the test; no wordings where a split does not use the kind
_ROWS = (
    (
        "detectable_format:number_bullet_lists",
        _number("num_bullets", 2, 6, words_each=6),
        ('Give it as a list of {num_bullets} points, each on a line that begins with "-".',),
        (
            'Use exactly {num_bullets} bullet points, and begin each with "* ".',
            "Your answer has to be a bulleted list (* or -) with exactly {num_bullets} entries.",
        ),
    ),
    (
        "length_constraints:number_sentences",
        _few_sentences,
        ("Keep the number of sentences to {relation} {num_sentences}.",),
        ("Write {relation} {num_sentences} sentences.", "It should have {relation} {num_sentences} sentences."),
    ),
    (
        "length_constraints:number_words",
        _few_words,
        ("Keep the number of words to {relation} {num_words}.",),
        ("Write {relation} {num_words} words.", "There is room for {relation} {num_words} words."),
    ),
    (
        "keywords:forbidden_words",
        _some("forbidden_words", "leaned_on"),
        ("Choose your words so that {forbidden_words} is not among them.",),
        ("Do this without the word {forbidden_words}.", "Avoid {forbidden_words} in your answer."),
    ),
    (
        "keywords:existence",
        _some("keywords", "shared"),
        ("{keywords} must be mentioned.",),
        ("Make sure to include {keywords}.", "Your text has to contain {keywords}."),
    ),
    (
        "clinical:json_keys",
        lambda rng, case: _names("keys", _KEYS[case.split], rng, case),
        ("Put all of it into one JSON object; its keys: {keys}.",),
        (
            "Answer with nothing but a JSON object that has exactly these keys: {keys}.",
            "The output is read by a program: a single JSON object with {keys} as keys and text as values.",
        ),
    ),
    (
        "clinical:headings",
        functools.partial(_names, "headings", _HEADINGS),
        (),
        (
            "Arrange it under these headings, in this order, each alone on its line: {headings}.",
            "Below each of the headings {headings} (a line of its own, in this order) put a part of the text.",
        ),
    ),
    (
        "clinical:lowercase",
        no_arguments,
        ("Write it without a single capital letter.",),
        ("Use lowercase letters only.", "No capital letters, not even in names."),
    ),
    (
        "clinical:uppercase",
        no_arguments,
        ("Write it with capital letters alone.",),
        ("Use uppercase letters only.", "Put everything in capitals."),
    ),
    (
        "punctuation:no_comma",
        no_arguments,
        ("Get by without commas.",),
        ("Do not use any commas.", "There must be no comma in your answer."),
    ),
    (
        "detectable_format:title",
        no_arguments,
        ("Above the text set a title like this: <<title>>.",),
        ("Start with a title in double angle brackets: <<title>>.", "Add a title, written as <<title>>."),
    ),
    (
        "detectable_content:postscript",
        lambda rng, case: {"postscript_marker": "P.S."},
        (),
        ("At the end add a postscript that starts with {postscript_marker}", "Add a {postscript_marker} line last."),
    ),
    (
        "startend:end_checker",
        lambda rng, case: {"end_phrase": pick(rng, _CLOSINGS[case.split])},
        ('Have "{end_phrase}" as your last words.',),
        ('Finish with exactly this: "{end_phrase}"', 'The answer must end with "{end_phrase}"'),
    ),
    (
        "startend:quotation",
        no_arguments,
        ('The first and the last character should be ".',),
        ("Enclose your whole answer in double quotation marks.", 'Put the entire text between a pair of ".'),
    ),
    (
        "length_constraints:number_paragraphs",
        _number("num_paragraphs", 2, 4, words_each=12),
        ("Separate it by *** into {num_paragraphs} paragraphs.",),
        (
            "Write exactly {num_paragraphs} paragraphs and put *** between them.",
            "It needs {num_paragraphs} paragraphs, divided by lines that are just ***.",
        ),
    ),
    (
        "detectable_format:multiple_sections",
        _sections,
        ("Number {num_sections} parts of it: {section_spliter} 1, {section_spliter} 2, ...",),
        (
            "Split it into {num_sections} sections that begin with {section_spliter} 1, {section_spliter} 2 and so on.",
            "Mark {num_sections} sections by {section_spliter} and a number.",
        ),
    ),
    (
        "detectable_content:number_placeholders",
        _number("num_placeholders", 1, 3, words_each=2),
        ("Put in {num_placeholders} or more fields to be completed by hand, such as [signature].",),
        (
            "Leave at least {num_placeholders} placeholders in square brackets, such as [date].",
            "For what is not known yet use bracketed placeholders like [name], {num_placeholders} at the least.",
        ),
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        _first_word,
        ('Let blank lines divide it into {num_paragraphs} parts; part {nth_paragraph} opens with "{first_word}".',),
        (
            "Paragraphs: {num_paragraphs}, with blank lines between them. Paragraph {nth_paragraph} must start with "
            'the word "{first_word}".',
            'Begin paragraph {nth_paragraph} of {num_paragraphs} (split by blank lines) with "{first_word}".',
        ),
    ),
    (
        "detectable_format:number_highlighted_sections",
        _number("num_highlights", 2, 4, words_each=3),
        ("Mark {num_highlights} important terms or more with asterisks, *so*.",),
        (
            "Highlight at least {num_highlights} phrases with asterisks, as in *phrase*.",
            "Set {num_highlights} or more findings between asterisks (*finding*).",
        ),
    ),
)


def kinds_of(split: str) -> list[Kind]:
    """The kinds used in a split, "dev" or "test"."""
    rows = ((id_, draw, {"dev": dev, "test": test}[split]) for id_, draw, dev, test in _ROWS)
    return [Kind(id_, draw, wordings) for id_, draw, wordings in rows if wordings]
