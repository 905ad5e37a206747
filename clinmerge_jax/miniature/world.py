"""A small invented world and the seeded text of the miniature's three corpora.

* `base_documents`: everyday text, and notes that have the shape of clinical notes but no facts.
* `clinical_documents`: notes that state the invented medical facts; no chat.
* `conversations`: everyday chat under checkable constraints; no medical facts.

The fact table (`facts.WORLD`) never depends on a corpus seed: every family of models, whatever its
seed, learns the same facts from different text.

Held-out rule (`facts.is_held_out`). A combination is held out when `crc32` of its parts joined by
"|" is divisible by `SIZES.held_out_one_in`. In clinical documents the combination is (diagnosis,
past diagnosis); in conversations it is (person, entity), for every person and entity that a turn
tells of, distractors included. Training text uses none of the held-out combinations and held-out
text uses only these, so each single fact is learnable from training text while its combination is
unseen.
"""

import random

from clinmerge_jax.miniature.chat import Turn, turn
from clinmerge_jax.miniature.everyday import copying, everyday_facts, story, word_list
from clinmerge_jax.miniature.facts import SIZES
from clinmerge_jax.miniature.notes import clinical_document, plain_note
from clinmerge_jax.seeded import pick


def _corpus_rng(name: str, seed: int, held_out: bool = False) -> random.Random:
    return random.Random(f"clinmerge/{name}/{'held-out' if held_out else 'train'}/{seed}")


def base_documents(seed: int, count: int) -> list[str]:
    """Returns `count` texts: stories, copying, everyday facts, plain notes and word lists.

    A longer corpus of the same seed starts with the shorter one; so for every corpus here.
    """
    rng = _corpus_rng("base", seed)
    writers = (story,) * 5 + (copying,) * 2 + (everyday_facts,) + (plain_note,) * 2 + (word_list,) * 2
    return [pick(rng, writers)(rng) for _ in range(count)]


def clinical_documents(seed: int, count: int, held_out: bool = False) -> list[str]:
    """Returns `count` notes that state the invented facts; see the module's held-out rule."""
    rng = _corpus_rng("clinical", seed, held_out)
    return [clinical_document(rng, held_out).text for _ in range(count)]


def conversation_turns(seed: int, count: int, held_out: bool = False) -> list[list[Turn]]:
    """Returns `count` conversations of 1 to `SIZES.max_turns` turns, with their constraints."""
    rng = _corpus_rng("conversations", seed, held_out)
    return [[turn(rng, held_out) for _ in range(1 + int(rng.random() * SIZES.max_turns))] for _ in range(count)]


def conversations(seed: int, count: int, held_out: bool = False) -> list[list[dict[str, str]]]:
    """Returns the conversations of `conversation_turns` as lists of `{"role", "content"}`."""
    return [
        [
            message
            for item in turns
            for message in ({"role": "user", "content": item.user}, {"role": "assistant", "content": item.assistant})
        ]
        for turns in conversation_turns(seed, count, held_out)
    ]
