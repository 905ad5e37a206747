"""The facts that a text states, read by rules: possible because the world is ours and its names are unique."""

import re

from clinmerge_jax.miniature.facts import WORLD

Fact = tuple[str, ...]

_KIND_OF = {
    **{disease.name: "disease" for disease in WORLD.diseases},
    **{drug: "drug" for drug in WORLD.drugs},
    **{finding: "finding" for finding in WORLD.findings},
    **{test.name: "test" for test in WORLD.tests},
}
_NAMES = re.compile(r"\b(" + "|".join(map(re.escape, _KIND_OF)) + r")\b")
# Lists share what stands before them ("no X or Y"); "and", commas and full stops begin another statement. A colon does,
# except in "Prior: X".
_CLAUSE = re.compile(r"[.,;\n]|(?<!\bprior)(?<!\bcomparison)(?<!\blast study):|\band\b|\bbut\b|\bso\b")
_NEGATED = re.compile(r"\b(no|not|without|avoid|avoided|contraindicated|forbidden)\b")
_PAST = re.compile(r"\b(past|history|prior|comparison|earlier|last study)\b")
_LEVEL = re.compile(r"\b(high|low)\b")
_DAYS = re.compile(r"\b(\w+) (days|weeks)\b")


def facts_in(text: str) -> frozenset[Fact]:
    """Returns the facts that a text states.

    A fact is (kind, name): a "disease", a "past" disease, a "finding" or one that is "absent", a "drug" that is given
    or one that is "avoided", or a "test" with its level, "high" or "low"; or ("days", number). The kind follows from
    the words of the same clause. Case is ignored, and so are words that no invented name or number of days stands by.
    A test without a level states nothing.
    """
    found: set[Fact] = set()
    for clause in _CLAUSE.split(text.casefold()):
        negated, past, level = (pattern.search(clause) for pattern in (_NEGATED, _PAST, _LEVEL))
        for name in _NAMES.findall(clause):
            kind = _KIND_OF[name]
            if kind == "test":
                if level:
                    found.add((kind, name, level[0]))
            elif kind == "drug":
                found.add(("avoided" if negated else kind, name))
            elif kind == "disease":
                found.add(("past" if past else kind, name))
            else:
                found.add(("absent" if negated else kind, name))
        found |= {("days", number, unit) for number, unit in _DAYS.findall(clause)}
    return frozenset(found)
