"""Generate the miniature's three corpora: seeded text about a small invented world.

* `base_documents`: everyday text, meaningless words, and notes shaped like clinical notes but without facts.
* `clinical_documents`: notes that state the invented medical facts; no chat.
* `conversations`: everyday chat with checkable constraints; no medical facts.

The fact table (`facts.WORLD`) does not depend on the corpus seed: every family of models learns the
same facts, from text that differs by seed.

Held-out rule (`facts.is_held_out`). A combination is held out when `crc32` of its parts joined by
"|" is divisible by `SIZES.held_out_one_in`. In clinical documents a combination is (diagnosis, past
diagnosis). In conversations it is (person, entity), for every person and entity that a turn
mentions, including distractors. Training text contains no held-out combination and held-out text
contains only these. So each single fact can be learned from training text, while the held-out
combinations are unseen.
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

    A longer corpus of the same seed starts with the shorter one. This holds for every corpus here.
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
