"""The generated two-turn set.

The second message is about the first answer, so that rules can check the second answer against the first. This
measures an ability that fine-tuning on single turns may damage.
"""

import dataclasses
import random
import re
from collections.abc import Callable

from clinmerge_jax.instructions.counting import sentences, words
from clinmerge_jax.metrics.metric import Metric, Output, averaged
from clinmerge_jax.seeded import pick, sample
from clinmerge_jax.tasks.instructions import topics
from clinmerge_jax.tasks.task import Item

COUNT = 60
_MARKER = re.compile(r"\s*(?:[-*•]|\d+[.)])\s+(.*)")
_ANSWER = "Somebody said {word} to me. Nobody knows what that was about. It may rain later."
_POINTS = ("wool", "apples", "a lamp", "string", "chalk", "buttons", "a bell")


@dataclasses.dataclass(frozen=True)
class FollowUp:
    """A kind of second message.

    Attributes:
      check: whether a second answer passes, from the first answer, the second, and the word that the item is about.
      make: makes a second answer that passes from the first answer and the word.
      wordings: wordings of the message, with the word in braces.
      about_points: whether the first answer should be a list.
    """

    check: Callable[[str, str, str], bool]
    make: Callable[[str, str], str]
    wordings: tuple[str, ...]
    about_points: bool = False


@dataclasses.dataclass(frozen=True)
class TwoTurns:
    """The `target` of a two-turn item: the kind of its second message, a key of `FOLLOW_UPS`, and a word."""

    kind: str
    word: str


def two_turn_items(seed: int = 0, count: int = COUNT) -> list[Item]:
    """Generate distinct conversations, taking the kinds in turn.

    With the same seed, the shorter of two lists is the beginning of the longer one.
    """
    made: dict[tuple[str, tuple[str, ...]], Item] = {}
    for number in range(count):
        rng = random.Random(f"two turns {seed} {number}")
        while (item := _item(rng, number, f"two-turn-{seed}-{number}")) and (item.source, item.turns) in made:
            pass
        made[item.source, item.turns] = item
    return list(made.values())


def second_turn() -> Metric:
    """The percentage of second answers that do what the second message asked for, given the first answer.

    The second answer fails if the first leaves nothing to ask about: if it is empty, or no list where one is expected.
    """

    def value(output: Output, target: TwoTurns) -> float:
        first = output.earlier[-1] if output.earlier else ""
        if not first.strip() or not output.text.strip():
            return 0.0
        return 100.0 * FOLLOW_UPS[target.kind].check(first, output.text.strip(), target.word)

    return averaged(
        "second_turn", "percent of second answers that follow, checked against the first answer", value, binary=True
    )


def solve(item: Item) -> Output:
    """Make both answers by rules; the second passes."""
    kind = FOLLOW_UPS[item.target.kind]
    points = "\n".join(f"- {point}" for point in _POINTS[:5])
    first = points if kind.about_points else _ANSWER.format(word=item.target.word)
    return Output(kind.make(first, item.target.word), earlier=(first,))


def _item(rng: random.Random, number: int, id_: str) -> Item:
    name = list(FOLLOW_UPS)[number % len(FOLLOW_UPS)]
    kind = FOLLOW_UPS[name]
    word, other = sample(rng, topics.WORDS, 2)
    slots = {"thing": pick(rng, topics.THINGS), "place": pick(rng, topics.PLACES), "trade": pick(rng, topics.TRADES)}
    request = pick(rng, _LISTS if kind.about_points else _TEXTS).format(**slots, word=word)
    first = re.sub(r"\ba (?=[aeiou])", "an ", request)
    if name == "yes_or_no" and rng.random() < 0.5:
        word = other  # the correct answer is no
    second = pick(rng, kind.wordings).format(word=word)
    return Item(id_, id_, {"prompt": first}, source=first, target=TwoTurns(name, word), turns=(second,))


_TEXTS = (
    'Describe a {thing} in three plain sentences, with the word "{word}" in one of them.',
    'What is it like to be a {trade}? Three sentences are enough; use "{word}" once.',
    'In three sentences, what would you see near a {place}? "{word}" should occur.',
)
_LISTS = (
    'Name five things to carry to a {place}, one a line after "- ".',
    'Which five tools might a {trade} own? One a line, each after "- ".',
    'List five uses of a {thing}, each on a line of its own that starts with "- ".',
)


def _bare(text: str) -> list[str]:
    return words(text.casefold())


def _points(text: str) -> list[list[str]]:
    """The case-folded words of each point of a list."""
    return [_bare(match[1]) for match in map(_MARKER.match, text.split("\n")) if match]


def _lines(points: list[list[str]]) -> str:
    return "\n".join(f"- {' '.join(point)}" for point in points)


def _without(first: str, second: str, word: str) -> bool:
    """Check that the word is gone and at least half of the other words are still there."""
    before, after = set(_bare(first)), set(_bare(second))
    return word in before and word not in after and 2 * len(before & after) >= len(before - {word})


def _is_yes_or_no(first: str, second: str, word: str) -> bool:
    return _bare(second) == ["yes" if word in _bare(first) else "no"]


def _rearranged(order: Callable[[list[list[str]]], list[list[str]]]) -> FollowUp:
    """A follow-up whose second answer is the list of points as transformed by `order`."""

    def check(first: str, second: str, word: str) -> bool:
        return len(points := _points(first)) > 2 and _points(second) == order(points)

    return FollowUp(check, lambda first, word: _lines(order(_points(first))), (), about_points=True)


def _worded(kind: FollowUp, *wordings: str) -> FollowUp:
    return dataclasses.replace(kind, wordings=wordings)


FOLLOW_UPS: dict[str, FollowUp] = {
    "capitals": FollowUp(
        lambda first, second, word: second.isupper() and _bare(second) == _bare(first),
        lambda first, word: first.upper(),
        ("Send that once more, unchanged but in capital letters.", "The same text again, please, all in capitals."),
    ),
    "first_sentence": FollowUp(
        lambda first, second, word: _bare(second) == _bare(sentences(first)[0]),
        lambda first, word: sentences(first)[0],
        (
            "Repeat your first sentence word for word, and only that.",
            "Give me just your opening sentence again, as it was.",
        ),
    ),
    "without_word": FollowUp(
        _without,
        lambda first, word: re.sub(rf"\b{word}\b", "thing", first),
        ('Say it again without the word "{word}".', 'Now the same, but "{word}" may not occur in it.'),
    ),
    "yes_or_no": FollowUp(
        _is_yes_or_no,
        lambda first, word: "Yes." if word in _bare(first) else "No.",
        ('Does your answer contain the word "{word}"? Reply with yes or no only.',),
    ),
    "last_word": FollowUp(
        lambda first, second, word: _bare(second) == _bare(first)[-1:],
        lambda first, word: _bare(first)[-1],
        ("Which word did you end with? Reply with that word alone.", "Write only the last word of your answer."),
    ),
    "how_many": FollowUp(
        lambda first, second, word: bool(_points(first)) and _bare(second) == [str(len(_points(first)))],
        lambda first, word: str(len(_points(first))),
        ("How many points are on your list? Reply with a numeral and nothing else.",),
        about_points=True,
    ),
    "reversed": _worded(
        _rearranged(lambda points: points[::-1]), "Turn your list round: last point first, in the same words."
    ),
    "sorted": _worded(_rearranged(sorted), "Put the points of your list into alphabetical order and change no words."),
    "first_two": _worded(
        _rearranged(lambda points: points[:2]), "Keep the first two points of the list as they are and drop the others."
    ),
    "one_more": FollowUp(
        lambda first, second, word: (
            len(_points(first)) > 1
            and _points(second)[:-1] == _points(first)
            and _points(second)[-1] not in _points(first)
        ),
        lambda first, word: _lines([*_points(first), _bare(_POINTS[-1])]),
        ("Repeat the list and add one new point at its end.",),
        about_points=True,
    ),
}
