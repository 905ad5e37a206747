"""Generates the miniature's corpora: seeded text about a small invented world.

* `copying_documents` and `base_documents`: the language of both sides without the facts: everyday text, copying,
  documents and notes with their summaries, questions, and lists of words in which the invented names occur at random.
* `clinical_documents`: documents that state the invented medical facts, teaching notes and examinations; no chat.
* `conversations`: everyday chat with checkable constraints; no medical facts.

The fact table (`facts.WORLD`) does not depend on the corpus seed: every family of models learns the same facts, from
text that differs by seed.

Splits (`facts.split_of`): a combination of entities, or of a document's wordings, belongs to train, dev or test. In
clinical documents entities are (disease, past disease); in conversations they are (person, entity), for every person
and entity that a turn mentions, distractors included. Training text contains combinations of train alone; so each
single fact can be learned from it, while the combinations of dev and test are unseen.
"""

import random
from collections.abc import Callable

from clinmerge_jax.miniature import clinical, everyday, questions
from clinmerge_jax.miniature.chat import Turn, turn
from clinmerge_jax.miniature.facts import SIZES, TRAIN
from clinmerge_jax.seeded import pick

_Writer = Callable[[random.Random], str]
_BASE: tuple[_Writer, ...] = (
    *(everyday.story,) * 2,
    *(everyday.copying,) * 2,
    *(everyday.rewriting,) * 3,
    everyday.everyday_facts,
    *(everyday.written,) * 5,
    *(clinical.plain_note,) * 5,
    *(questions.everyday_question,) * 3,
)


def _corpus_rng(name: str, seed: int, split: str) -> random.Random:
    return random.Random(f"clinmerge/{name}/{split}/{seed}")


def copying_documents(seed: int, count: int) -> list[str]:
    """Returns `count` texts of repeated words, from which a model learns to copy before it learns anything else."""
    rng = _corpus_rng("copying", seed, TRAIN)
    return [everyday.copying(rng) for _ in range(count)]


def base_documents(seed: int, count: int) -> list[str]:
    """Returns `count` texts of everyday language.

    A longer corpus of the same seed starts with the shorter one. This holds for every corpus here.
    """
    rng = _corpus_rng("base", seed, TRAIN)
    return [pick(rng, _BASE)(rng) for _ in range(count)]


def clinical_documents(seed: int, count: int, split: str = TRAIN) -> list[str]:
    """Returns `count` texts that state the invented facts; examinations are of the training split alone."""
    rng = _corpus_rng("clinical", seed, split)
    return [_clinical(rng, split) for _ in range(count)]


def _clinical(rng: random.Random, split: str) -> str:
    chance = rng.random()
    if chance < 0.6:
        return clinical.document(rng, pick(rng, tuple(clinical.SHAPES)), split).text
    if chance < 0.85 or split != TRAIN:
        return clinical.teaching(rng, split)
    return questions.examination(rng)


def conversation_turns(seed: int, count: int, split: str = TRAIN) -> list[list[Turn]]:
    """Returns `count` conversations of 1 to `SIZES.max_turns` turns, with their constraints."""
    rng = _corpus_rng("conversations", seed, split)
    return [[turn(rng, split) for _ in range(1 + int(rng.random() * SIZES.max_turns))] for _ in range(count)]


def conversations(seed: int, count: int, split: str = TRAIN) -> list[list[dict[str, str]]]:
    """Returns the conversations of `conversation_turns` as lists of `{"role", "content"}`."""
    return [
        [
            message
            for item in turns
            for message in ({"role": "user", "content": item.user}, {"role": "assistant", "content": item.assistant})
        ]
        for turns in conversation_turns(seed, count, split)
    ]
