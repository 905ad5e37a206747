"""The checkers of the miniature's own kinds, at the edges of their definitions."""

import pytest

from clinmerge_jax.instructions.miniature import MINIATURE

_CASES = [
    (
        "miniature:first_word",
        {"word": "kite"},
        [("kite: red.", True), ("KITE", True), ('"Kite," he said', True), ("a kite", False), ("kites", False),
         ("", False)],
    ),
    (
        "miniature:listed",
        {"items": ("kite", "red drum")},
        [("kite, red drum", True), ("Kite,red drum.", True), ("red drum, kite", False), ("kite", False),
         ("kite, red drum, lamp", False), ("kite and red drum", False), ("", False)],
    ),
    (
        "miniature:yes_or_no",
        {},
        [("Yes", True), (" no.\n", True), ("YES", True), ("Yes, it is.", False), ("maybe", False), ("", False)],
    ),
]  # fmt: skip


def test_every_kind_has_cases():
    assert {kind for kind, *_ in _CASES} == set(MINIATURE)


@pytest.mark.parametrize(
    "kind, arguments, response, follows",
    [(kind, arguments, *one) for kind, arguments, responses in _CASES for one in responses],
)
def test_verdicts(kind, arguments, response, follows):
    assert MINIATURE[kind](response, **arguments) is follows
