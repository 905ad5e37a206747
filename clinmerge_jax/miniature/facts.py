"""The invented medical facts: one fixed world, and the rule that assigns combinations to splits."""

import dataclasses
import random
import zlib
from collections.abc import Sequence

from clinmerge_jax.seeded import pick, sample

TRAIN, DEV, TEST = "train", "dev", "test"
SPLITS = (TRAIN, DEV, TEST)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Entries of each kind in the world, and the share of combinations that each of dev and test holds."""

    diseases: int = 30
    drugs: int = 30
    findings: int = 48
    lab_tests: int = 12
    held_out_one_in: int = 8
    max_turns: int = 2


SIZES = Sizes()


def split_of(*parts: str, one_in: int = SIZES.held_out_one_in) -> str:
    """Returns the split that a combination belongs to: one in `one_in` is test, one in `one_in` dev, the rest train.

    It is decided by `crc32` of the parts joined by "|", so it does not depend on any seed.
    """
    return {0: TEST, 1: DEV}.get(zlib.crc32("|".join(parts).encode()) % one_in, TRAIN)


@dataclasses.dataclass(frozen=True)
class LabTest:
    """A blood test with its reference range."""

    name: str
    low: int
    high: int


@dataclasses.dataclass(frozen=True)
class Disease:
    """One row of the fact table: a disease's findings, its treatment and the drug it contraindicates."""

    name: str
    findings: tuple[str, str]
    drug: str
    second_drug: str  # given when a past disease contraindicates `drug`
    forbids: str  # contraindicated in anyone who ever had this disease
    test: LabTest
    test_is_high: bool

    @property
    def level(self) -> str:
        """The level of the test in this disease: "high" or "low"."""
        return "high" if self.test_is_high else "low"


@dataclasses.dataclass(frozen=True)
class World:
    """Every invented name, and the fact table."""

    diseases: tuple[Disease, ...]
    drugs: tuple[str, ...]
    findings: tuple[str, ...]
    tests: tuple[LabTest, ...]

    def invented_words(self) -> list[str]:
        """Returns every invented word, in lower case."""
        adjectives = [finding.split()[0] for finding in self.findings]
        tests = [test.name.split()[1] for test in self.tests]
        return [disease.name for disease in self.diseases] + list(self.drugs) + adjectives + tests

    def disease(self, name: str) -> Disease:
        """Returns the row of a disease; raises StopIteration if there is none."""
        return next(disease for disease in self.diseases if disease.name == name)


_SYLLABLES = (
    "bax dov fim gorv jel kriv lum morb nax pell quor rusk sild tav umb vex wol yar zend brin chag drel frop glim"
).split()
SIGNS = (
    "rash cough pain swelling tremor ache itch fever stiffness numbness weakness bruising dizziness nausea thirst"
).split()


def _build_world() -> World:
    rng = random.Random("clinmerge/world/2")
    # No stem is used twice, so no invented name is part of another.
    stems = iter(
        sample(
            rng,
            [a + b for a in _SYLLABLES for b in _SYLLABLES if a != b],
            SIZES.diseases + SIZES.drugs + SIZES.findings + SIZES.lab_tests,
        )
    )

    def names_of(count: int, suffixes: Sequence[str]) -> list[str]:
        return [next(stems) + pick(rng, suffixes) for _ in range(count)]

    names = names_of(SIZES.diseases, ("osis", "itis", "emia"))
    drugs = names_of(SIZES.drugs, ("ine", "ol", "ivir"))
    findings = [f"{word} {pick(rng, SIGNS)}" for word in names_of(SIZES.findings, ("ic", "al"))]
    tests = []
    for name in names_of(SIZES.lab_tests, ("ate", "in")):
        low = 10 + int(rng.random() * 40)
        tests.append(LabTest(f"serum {name}", low, low + 20 + int(rng.random() * 30)))
    # Consecutive entries of repeated shuffles: every finding is used, and no pair occurs twice.
    pairs: dict[frozenset[str], tuple[str, str]] = {}
    while len(pairs) < SIZES.diseases:
        order = sample(rng, findings, len(findings))
        for pair in zip(order[::2], order[1::2], strict=True):
            pairs.setdefault(frozenset(pair), pair)
    drug_order = sample(rng, drugs, len(drugs))
    shifted = [drug_order[i:] + drug_order[:i] for i in (7, 19)]  # never a disease's own drug
    diseases = tuple(
        Disease(name, pair, drug, second, forbids, pick(rng, tests), rng.random() < 0.5)
        for name, pair, drug, second, forbids in zip(names, pairs.values(), drug_order, *shifted, strict=False)
    )
    return World(diseases, tuple(drugs), tuple(findings), tuple(tests))


WORLD = _build_world()
