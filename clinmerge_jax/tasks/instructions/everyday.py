"""The kinds of instructions of the development set: IFEval's 25, with arguments and wordings of their own."""

import functools
import random

from clinmerge_jax.seeded import between, pick, sample
from clinmerge_jax.tasks.instructions import topics
from clinmerge_jax.tasks.instructions.compliant import LANGUAGES
from clinmerge_jax.tasks.instructions.kinds import Arguments, Kind, no_arguments

_NAMES = {"es": "Spanish", "fr": "French", "nl": "Dutch", "pl": "Polish", "sv": "Swedish", "tr": "Turkish"}
_CLOSINGS = (
    "And with that the kettle goes back on.",
    "More of this on a rainy Sunday.",
    "Mind the step on your way out.",
    "The rest is up to the weather.",
    "Ask me again once the swallows return.",
)


def _two_ways(name: str, relation: str, at_least: tuple[int, int], less_than: tuple[int, int]):
    """Make a `Kind.draw` for a number with its relation, "at least" or "less than", each with a range of its own."""

    def draw(rng: random.Random, request: str) -> Arguments:
        low = rng.random() > 0.5
        return {relation: "at least" if low else "less than", name: between(rng, *(at_least if low else less_than))}

    return draw


def _keyword_count(rng: random.Random, request: str) -> Arguments:
    number = _two_ways("frequency", "relation", (2, 4), (2, 3))(rng, request)
    return {"keyword": pick(rng, topics.WORDS), **number}


def _letter_count(rng: random.Random, request: str) -> Arguments:
    number = _two_ways("let_frequency", "let_relation", (4, 9), (2, 5))(rng, request)
    return {"letter": pick(rng, "bfgkpvwz"), **number}


def _some_words(name: str, rng: random.Random, request: str) -> Arguments:
    return {name: tuple(sample(rng, topics.WORDS, between(rng, 1, 3)))}


def _first_word(rng: random.Random, request: str) -> Arguments:
    paragraphs = between(rng, 2, 5)
    return {
        "num_paragraphs": paragraphs,
        "nth_paragraph": between(rng, 1, paragraphs),
        "first_word": pick(rng, topics.WORDS),
    }


def _sections(rng: random.Random, request: str) -> Arguments:
    return {"section_spliter": pick(rng, ("Part", "Chapter", "Stage")), "num_sections": between(rng, 2, 5)}


def _number(name: str, low: int, high: int):
    return lambda rng, request: {name: between(rng, low, high)}


KINDS: list[Kind] = [
    Kind(
        "change_case:capital_word_frequency",
        _two_ways("capital_frequency", "capital_relation", (2, 6), (2, 6)),
        (
            "Write {capital_relation} {capital_frequency} words entirely in capitals.",
            "The count of words shouted in upper case has to be {capital_relation} {capital_frequency}.",
        ),
    ),
    Kind(
        "change_case:english_capital",
        no_arguments,
        ("Stick to English and keep caps lock on throughout.", "English please, with every single letter a capital."),
    ),
    Kind(
        "change_case:english_lowercase",
        no_arguments,
        ("Stay in English and never press shift: small letters only.", "English, and not one upper-case letter in it."),
    ),
    Kind(
        "combination:repeat_prompt",
        lambda rng, request: {"prompt_to_repeat": request},
        (
            "Before you answer, copy the first line of this message exactly, and put nothing ahead of the copy.",
            "Open with an unaltered copy of my first line, none of the others, then reply.",
        ),
    ),
    Kind(
        "combination:two_responses",
        no_arguments,
        (
            "Offer two versions that are not the same, and put ****** between them and nowhere else.",
            "I would like a pair of alternative replies; a row of six stars (******) goes in the middle.",
        ),
    ),
    Kind(
        "detectable_content:number_placeholders",
        _number("num_placeholders", 2, 5),
        (
            "Leave {num_placeholders} or more blanks for me to fill in, written like this: [town].",
            "Where details are unknown put names in brackets, as in [colour]; {num_placeholders} of them at least.",
        ),
    ),
    Kind(
        "detectable_content:postscript",
        lambda rng, request: {"postscript_marker": pick(rng, ("P.S.", "P.P.S"))},
        (
            "After you have signed off, add an afterthought that begins with {postscript_marker}",
            "Close with a short extra remark marked {postscript_marker}",
        ),
    ),
    Kind(
        "detectable_format:constrained_response",
        no_arguments,
        (
            'Give one of these replies as it stands: "My answer is yes.", "My answer is no.", "My answer is maybe."',
            'Pick from "My answer is maybe.", "My answer is no." and "My answer is yes."; quote it unchanged.',
        ),
    ),
    Kind(
        "detectable_format:json_format",
        no_arguments,
        (
            "Return a valid JSON object and no text around it.",
            "A program will parse what you send, so send JSON alone.",
        ),
    ),
    Kind(
        "detectable_format:multiple_sections",
        _sections,
        (
            "Divide it into {num_sections} pieces, headed {section_spliter} 1, {section_spliter} 2 and onwards.",
            "Make {num_sections} pieces and head each of them with {section_spliter} and its number.",
        ),
    ),
    Kind(
        "detectable_format:number_bullet_lists",
        _number("num_bullets", 2, 7),
        (
            'Lay it out as {num_bullets} bullets, neither more nor fewer, each on a line that starts with "* ".',
            "There should be a list in markdown whose bullets (* one) number {num_bullets} precisely.",
        ),
    ),
    Kind(
        "detectable_format:number_highlighted_sections",
        _number("num_highlights", 2, 5),
        (
            "Emphasise {num_highlights} or more bits of it between asterisks, *so*.",
            "Put stars around the parts that matter, *like here*, at least {num_highlights} times.",
        ),
    ),
    Kind(
        "detectable_format:title",
        no_arguments,
        (
            "Give the piece a name and print it between << and >>.",
            "Set a headline above the rest, enclosed as <<headline>>.",
        ),
    ),
    Kind(
        "keywords:existence",
        functools.partial(_some_words, "keywords"),
        ("Work in {keywords} somewhere.", "Somewhere the reader should come across {keywords}."),
    ),
    Kind(
        "keywords:forbidden_words",
        functools.partial(_some_words, "forbidden_words"),
        ("Steer clear of {forbidden_words}.", "Banned vocabulary: {forbidden_words}."),
    ),
    Kind(
        "keywords:frequency",
        _keyword_count,
        (
            'Let "{keyword}" turn up {relation} {frequency} times.',
            'I will count how often you say "{keyword}": it must be {relation} {frequency}.',
        ),
    ),
    Kind(
        "keywords:letter_frequency",
        _letter_count,
        (
            "How often {letter} occurs among your letters: {let_relation} {let_frequency}.",
            "Counting {letter}s, large and small, I must arrive at {let_relation} {let_frequency}.",
        ),
    ),
    Kind(
        "language:response_language",
        lambda rng, request: {"language": pick(rng, sorted(LANGUAGES))},
        (
            "My cousin reads {language} and no other tongue, so write it in that.",
            "Reply from start to end in {language}.",
        ),
        _NAMES,
    ),
    Kind(
        "length_constraints:nth_paragraph_first_word",
        _first_word,
        (
            "Exactly {num_paragraphs} paragraphs with an empty line between one and the next; "
            'let number {nth_paragraph} open with "{first_word}".',
            "Of {num_paragraphs} paragraphs in all, set apart by blank lines, "
            'paragraph {nth_paragraph} has "{first_word}" as its first word.',
        ),
    ),
    Kind(
        "length_constraints:number_paragraphs",
        _number("num_paragraphs", 2, 5),
        (
            "Break it into precisely {num_paragraphs} paragraphs with a line of *** between neighbours.",
            "I want {num_paragraphs} paragraphs, no other number, kept apart by three stars (***).",
        ),
    ),
    Kind(
        "length_constraints:number_sentences",
        _two_ways("num_sentences", "relation", (4, 12), (3, 8)),
        ("Spend {relation} {num_sentences} sentences on it.", "The number of sentences: {relation} {num_sentences}."),
    ),
    Kind(
        "length_constraints:number_words",
        _two_ways("num_words", "relation", (40, 250), (30, 150)),
        ("Spend {relation} {num_words} words on it.", "A length of {relation} {num_words} words would suit me."),
    ),
    Kind(
        "punctuation:no_comma",
        no_arguments,
        ("Do it with no comma at all.", "My comma key is broken, so manage without that mark."),
    ),
    Kind(
        "startend:end_checker",
        lambda rng, request: {"end_phrase": pick(rng, _CLOSINGS)},
        (
            'Let the last thing you say be: "{end_phrase}"',
            'Sign off with these very words and stop there: "{end_phrase}"',
        ),
    ),
    Kind(
        "startend:quotation",
        no_arguments,
        (
            'Start with a " and stop with a " so that it looks like speech.',
            'Let a " be both the opening and the closing character.',
        ),
    ),
]
