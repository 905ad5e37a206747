"""Our verdicts against lm-eval's, on responses made by rules and by small models."""

import csv
import json
import os
import subprocess
import sys
import types

import pytest
import support
from instruction_responses import responses

from clinmerge_jax.instructions.checkers import CHECKERS
from clinmerge_jax.instructions.counting import sentences
from clinmerge_jax.instructions.scores import loose, strict
from clinmerge_jax.tasks.instructions.data import read_prompts

_OWN = (
    ("keywords:existence", {"keywords": ["river", "Bread"]}),
    ("keywords:frequency", {"keyword": "it", "frequency": 3, "relation": "at least"}),
    ("keywords:frequency", {"keyword": "it", "frequency": 2, "relation": "less than"}),
    ("keywords:forbidden_words", {"forbidden_words": ["line", "we", "HELLO"]}),
    ("keywords:letter_frequency", {"letter": "E", "let_frequency": 12, "let_relation": "at least"}),
    ("keywords:letter_frequency", {"letter": "s", "let_frequency": 4, "let_relation": "less than"}),
    ("language:response_language", {"language": "de"}),
    ("language:response_language", {"language": "hi"}),
    ("length_constraints:number_words", {"num_words": 20, "relation": "at least"}),
    ("length_constraints:number_words", {"num_words": 12, "relation": "less than"}),
    ("length_constraints:number_sentences", {"num_sentences": 4, "relation": "at least"}),
    ("length_constraints:number_sentences", {"num_sentences": 3, "relation": "less than"}),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 3}),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 3, "nth_paragraph": 2, "first_word": "river"}),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}),
    ("detectable_format:number_bullet_lists", {"num_bullets": 4}),
    ("detectable_format:constrained_response", {}),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}),
    ("detectable_format:multiple_sections", {"section_spliter": "Section", "num_sections": 3}),
    ("detectable_format:json_format", {}),
    ("detectable_format:title", {}),
    ("combination:two_responses", {}),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Name three rivers."}),
    ("startend:end_checker", {"end_phrase": "That is all."}),
    ("startend:quotation", {}),
    ("change_case:capital_word_frequency", {"capital_frequency": 5, "capital_relation": "at least"}),
    ("change_case:capital_word_frequency", {"capital_frequency": 3, "capital_relation": "less than"}),
    ("change_case:english_capital", {}),
    ("change_case:english_lowercase", {}),
    ("punctuation:no_comma", {}),
)
_ROWS = [
    {"key": key, "prompt": "Name three rivers.", "instruction_id_list": [kind], "kwargs": [given]}
    for key, (kind, given) in enumerate(_OWN)
]
_OURS = types.SimpleNamespace(tokenize=sentences)  # where a sentence ends is compared apart from what is counted


@pytest.fixture(scope="module")
def theirs(repository):
    pytest.importorskip("lm_eval")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(repository / "third_party" / "reference"))
        import ifeval_with_lm_eval

        yield ifeval_with_lm_eval


def _items(rows, folder):
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_prompts(str(path), "prompts")


def _rule_made(rows, items, count):
    return [(row, item.target, text) for row, item in zip(rows, items) for text in responses(row, count)]


def _compare(judge, cases):
    """How often we say (no, yes) of each kind, strictly; and the cases where the two differ, strictly or loosely."""
    seen = {kind: [0, 0] for kind in CHECKERS}
    differences = []
    for row, asked, response in cases:
        found = judge(row, response)
        for way, ours in (("strict", strict(asked, response)), ("loose", loose(asked, response))):
            for kind, mine, other in zip(row["instruction_id_list"], ours, found[way], strict=True):
                seen[kind][mine] += way == "strict"
                if mine != other:
                    differences.append((kind, row["key"], way, response))
    return seen, differences


def test_verdicts_on_rule_made_responses(theirs, tmp_path):
    seen, differences = _compare(theirs.verdicts(_OURS), _rule_made(_ROWS, _items(_ROWS, tmp_path), 20))
    assert not differences
    assert min(min(counts) for counts in seen.values()) >= 2


# Where the two differ by intent: kind, what is asked for, response, our verdict, theirs or that they end in an error.
# We are right in each: they take a keyword for a pattern, draw a threshold in place of 0 and a place in place of one
# beyond the end, count a lone asterisk and the bullet after it as one, and end where JSON is nested too deeply.
_BY_INTENT = (
    ("keywords:existence", {"keywords": ["a.c"]}, "abc", False, True),
    ("keywords:frequency", {"keyword": ":)", "frequency": 1, "relation": "at least"}, ":)", True, "error"),
    ("keywords:forbidden_words", {"forbidden_words": ["3.5"]}, "It is 345.", True, False),
    ("detectable_format:multiple_sections", {"section_spliter": "Part (", "num_sections": 1}, "Part (1", True, "error"),
    ("detectable_content:postscript", {"postscript_marker": "N.B."}, "Only nabs.", False, True),
    ("length_constraints:number_words", {"num_words": 0, "relation": "at least"}, "Few words.", True, False),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 1, "nth_paragraph": 9, "first_word": "one"},
        "one",
        False,
        None,  # drawn
    ),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "*\n* two", True, False),
    ("detectable_format:json_format", {}, "[" * 100_000, False, "error"),
)


@pytest.mark.parametrize("kind, given, response, ours, other", _BY_INTENT, ids=[case[0] for case in _BY_INTENT])
def test_where_verdicts_differ_by_intent(theirs, tmp_path, kind, given, response, ours, other):
    row = {"key": 1, "prompt": "Say so.", "instruction_id_list": [kind], "kwargs": [given]}
    (item,) = _items([row], tmp_path)
    assert strict(item.target, response) == (ours,)
    judge = theirs.verdicts(_OURS)
    if other == "error":
        with pytest.raises(theirs.ERRORS):
            judge(row, response)
    elif other is not None:
        assert judge(row, response)["strict"] == [other]


def _generated(model, rows, folder, new, **settings):
    """Answers of a model, that are drawn, to the beginnings of prompts."""
    prompts = folder / "beginnings.jsonl"
    starts = [{"id": str(row["key"]), "prompt": row["prompt"][:80]} for row in rows]
    prompts.write_text("".join(json.dumps(start) + "\n" for start in starts), encoding="utf-8")
    given = {"model": model, "prompts": prompts, "output": folder / "answers", "max_new_tokens": new, **settings}
    flags = [f"--config.{key}={value}" for key, value in given.items()]
    main = [sys.executable, "-m", "clinmerge_jax.main", "--config=configs/generate.py", "--config.temperature=0.8"]
    subprocess.run([*main, *flags], check=True, capture_output=True)
    return [json.loads(line)["answer"] for line in (folder / "answers/answers.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def cases(shared, tmp_path_factory):
    """IFEval's prompts with responses made by rules, by the miniature and by stories260K."""
    data, weights = shared / "data/ifeval/input_data.jsonl", shared / "weights"
    if not data.is_file() or not (weights / "stories260K.bin").is_file():
        pytest.skip("ifeval/input_data.jsonl or stories260K.bin is not among the shared data")
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    items = read_prompts(str(data), "prompts")
    folders = {name: tmp_path_factory.mktemp(name) for name in ("stories", "miniature")}
    stories = folders["stories"] / "model"
    support.convert(weights / "stories260K.bin", stories, tokenizer=str(weights / "tok512.bin"))
    made = _rule_made(rows, items, 6)
    for name, model, new, settings in (
        ("stories", str(stories), 200, {}),
        ("miniature", "miniature:instruct", 64, {"chat_template": True}),
    ):
        answers = _generated(model, rows[::3], folders[name], new, **settings)
        made += zip(rows[::3], (item.target for item in items[::3]), answers, strict=True)
    return made


# Of IFEval's prompts those that ask for "#" and "!", which lm-eval replaces by a letter that it draws.
_DRAWN = {("keywords:letter_frequency", 1122), ("keywords:letter_frequency", 1129)}


@pytest.mark.slow
def test_verdicts_on_the_prompts_of_ifeval(theirs, cases, figures):
    seen, differences = _compare(theirs.verdicts(_OURS), cases)
    figures.append(
        f"IFEval: {len(cases)} responses; of each kind how often not followed, followed; differences to lm-eval"
    )
    for kind, (no, yes) in seen.items():
        differing = sum(one == kind for one, *_ in differences)
        figures.append(f"  {kind:44} {no:5} {yes:5} {differing:3}")
    assert len(cases) >= 3000
    assert {(kind, key) for kind, key, *_ in differences} <= _DRAWN
    assert min(min(counts) for counts in seen.values()) >= 20


@pytest.fixture(scope="module")
def trained(theirs):
    """NLTK's trained English Punkt."""
    folder = os.environ.get("CLINMERGE_NLTK_DATA")
    if folder is None:
        pytest.skip("CLINMERGE_NLTK_DATA does not name a folder with tokenizers/punkt_tab")
    return theirs.splitter(folder)


@pytest.mark.slow
def test_verdicts_where_lm_eval_has_the_trained_punkt(theirs, cases, trained, figures):
    seen, differences = _compare(theirs.verdicts(trained), cases)
    differing = [case for case in differences if case[:2] not in _DRAWN]
    figures.append(f"IFEval: {len(differing)} verdicts differ where lm-eval has the trained Punkt: {differing}")
    assert {kind for kind, *_ in differing} <= {"length_constraints:number_sentences"}
    assert len(differing) <= 0.02 * 2 * sum(seen["length_constraints:number_sentences"])


def test_sentences_beside_the_trained_punkt(shared, trained):
    """The share of texts with the same number of sentences that `counting.sentences` states."""
    prompts = [item.source for item in read_prompts(str(shared / "data/ifeval/input_data.jsonl"), "prompts")]
    notes = []
    for path in sorted((shared / "data/aci_bench").glob("*.csv")):
        with open(path, encoding="utf-8-sig", newline="") as file:
            notes += [row["note"] for row in csv.DictReader(file) if row.get("note")]
    for texts, count, share in ((prompts, 541, 99.3), (notes, 207, 93.2)):
        same = [len(sentences(text)) == len(trained.tokenize(text)) for text in texts]
        assert (len(same), round(100 * sum(same) / len(same), 1)) == (count, share)
