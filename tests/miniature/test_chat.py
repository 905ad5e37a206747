"""Chat: answers that obey their constraint, and unseen held-out combinations."""

import json
import re

from clinmerge_jax.miniature import chat, vocabulary, world


def _turns(held_out=False, count=800):
    return [turn for talk in world.conversation_turns(11, count, held_out) for turn in talk]


def test_held_out_conversation_pairs_are_unseen():
    # Read from the text, not from the recorded combinations, which might leave one out.
    def pairs(held_out):
        entities = vocabulary.THINGS + vocabulary.ANIMALS
        found = set()
        for turn in _turns(held_out):
            for name, rest in re.findall(
                r"([A-Z]\w+) ((?:has|left|gave|bought|saw|drew|found) "
                r"[^.]*)\.",
                turn.user,
            ):
                words = re.findall(r"[a-z]+", rest)
                found |= {(name, e) for e in entities if e in words or f"{e}s" in words}
            assert set(turn.combinations) <= found
        return found

    train, held_out = pairs(False), pairs(True)
    assert len(train) > 500 and len(held_out) > 100
    assert not train & held_out


def _obeys(kind, argument, question, user, reply):
    words = [word.strip('.,:"').lower() for word in reply.split()]
    items = re.findall(r"\ban? (\w+)", user.split("?")[0])
    checks = {
        "plain": lambda: reply.endswith("."),
        "upper": lambda: reply == reply.upper() != reply.lower(),
        "lower": lambda: reply == reply.lower() != reply.upper(),
        "words": lambda: len(words) == int(argument),
        "start": lambda: words[0] == argument,
        "end": lambda: reply.endswith(f" {argument}"),
        "repeat": lambda: reply.startswith(question + "\n") and len(reply) > len(question) + 1,
        "yes_no": lambda: reply in ("Yes", "No"),
        "quote": lambda: reply[0] == reply[-1] == '"' and reply.count('"') == 2,
        "avoid": lambda: argument.lower() not in words,
        "json": lambda: list(json.loads(reply)) == [argument],
        "bullets": lambda: reply.split("\n") == [f"* {item}" for item in items] and len(items) == int(argument),
        "order": lambda: reply.split(", ") == (items if argument == "the same" else items[::-1]),
    }
    return checks[kind]()


def test_answers_obey_their_constraint_and_contain_the_answer():
    turns = _turns() + _turns(held_out=True)
    assert {turn.kind for turn in turns} == set(chat.KINDS)
    for turn in turns:
        assert turn.question in turn.user and turn.argument in turn.user
        assert _obeys(turn.kind, turn.argument, turn.question, turn.user, turn.assistant), turn
        assert all(part.lower() in turn.assistant.lower() for part in turn.answer), turn


def test_yes_no_answers_agree_with_the_stated_fact():
    patterns = {  # question -> the statement that makes the answer yes
        r"Is the (\w+) of (\w+) (\w+)\?": r"\2 has a \3 \1.",
        r"Did (\w+) leave the (\w+) in the (\w+)\?": r"\1 left the \2 in the \3.",
        r"Did (\w+) give the (\w+) some (\w+)\?": r"\1 gave the \2 some \3.",
        r"Did (\w+) buy (\w+) (\w+)\?": r"\1 bought \2 \3.",
        r"Did (\w+) see a (\w+) on (\w+)\?": r"\1 saw a \2 on \3.",
    }
    seen = []
    for turn in _turns(count=1500):
        if turn.kind == "yes_no":
            (statement,) = [
                re.sub(question, fact, turn.question)
                for question, fact in patterns.items()
                if re.fullmatch(question, turn.question)
            ]
            assert turn.assistant == ("Yes" if statement in turn.user else "No")
            seen.append(turn.assistant)
    assert 0.35 < seen.count("Yes") / len(seen) < 0.65
