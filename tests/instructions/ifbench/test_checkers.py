"""The kinds of IFBench that its wording defines."""

import json

import pytest

from clinmerge_jax.instructions.ifbench.checkers import IFBENCH, UNDEFINED
from clinmerge_jax.instructions.scores import strict
from clinmerge_jax.tasks.instructions.data import read_ifbench

_WORDS = {f"keyword{place}": word for place, word in enumerate("ab cd ef gh ij".split(), start=1)}
_TEMPLATE = "My Answer: {} My Conclusion: so. Future Outlook: good."
_PALINDROMES = "level radar civic refer rotor kayak madam tenet solos stats"
_A_TO_Z = " ".join(f"{chr(code)}pples are there." for code in range(ord("A"), ord("Z") + 1))

_CASES = [
    ("count:conjunctions", {"small_n": 3}, [("For me and you, but so", True), ("and AND, andy", False)]),
    (
        "count:keywords_multiple",
        _WORDS,
        [
            ("ab " + "CD " * 2 + "ef. " * 3 + "gh, " * 5 + "ij " * 7, True),
            ("ab " + "cd " * 2 + "ef " * 3 + "gh " * 5 + "ij " * 8, False),
            ("abs " + "cd " * 2 + "ef " * 3 + "gh " * 5 + "ij " * 7, False),
        ],
    ),
    ("count:unique_word_count", {"N": 3}, [("one two One well-known", True), ("one, One! two", False)]),
    (
        "count:word_count_range",
        {"min_words": 2, "max_words": 3},
        [("one don't", True), ("one two - three", True), ("one", False), ("a b c d", False)],
    ),
    ("custom:multiples", {}, [("14, 21, 28, 35, 42, 49", True), ("7 14 21 28 35 42 49", False), ("none", False)]),
    ("custom:sentence_alphabet", {}, [(_A_TO_Z, True), (_A_TO_Z + " One more.", False), (_A_TO_Z[3:], False)]),
    ("format:line_indent", {}, [("a\n b\n\n  c", True), ("a\n b\n b", False), ("a", False)]),
    ("format:newline", {}, [("one\ntwo\n\nthree", True), ("one two\nthree", False)]),
    (
        "format:no_bullets_bullets",
        {},
        [
            ("One. Two.\n* a\n* b", True),
            ("One.\n* a\n* b", False),
            ("One. Two.\n* a", False),
            ("* a\n* b\nOne. Two.", False),
            ("One. Two.", False),
        ],
    ),
    ("format:no_whitespace", {}, [("one,two", True), ("one two", False), ("one\u3000two", False)]),
    (
        "format:output_template",
        {},
        [
            (_TEMPLATE.format("yes."), True),
            (_TEMPLATE.format("yes.").replace(" My", "\n\nMy"), True),
            (_TEMPLATE.format(""), False),
            ("Sure. " + _TEMPLATE.format("yes."), False),
        ],
    ),
    (
        "format:parentheses",
        {},
        [
            ("a (b [c {d (e [f])}])", True),
            ("(((((x)))))", True),
            ("(((((", False),
            ("((((x))))", False),
            ("()()()()()", False),
            ("[([([)])])]", False),
            ("(1) { ( [ { ( ) } ] ) (", False),
            ("(1) { ( [ { ( ) } ] ) }", True),
        ],
    ),
    (
        "format:sub-bullets",
        {},
        [
            ("* a\n  - b\n* c\n- d\n- e", True),
            ("* a\n* c\n- d", False),
            ("- a\n- b", False),
            ("* a\n- b\n* c", False),
        ],
    ),
    ("ratio:sentence_type", {}, [("One. Two. Who?", True), ('One. "Two." Who?" So!', True), ("One. Two.", False)]),
    (
        "ratio:sentence_words",
        {},
        [("Cats run. Dogs sit. Pigs eat.", True), ("Cats run. Cats sit. Pigs eat.", False), ("A b. C d.", False)],
    ),
    (
        "repeat:repeat_change",
        {"prompt_to_repeat": "Write it down."},
        [("Put it down.", True), ("Write it down.", False), ("Put it down. Yes.", False), ("Put", False)],
    ),
    (
        "repeat:repeat_simple",
        {},
        [("Only output this sentence here, ignore all other requests.\n", True), ("Only output this sentence.", False)],
    ),
    (
        "sentence:increment",
        {"small_n": 2},
        [("Go. Go on now. One, two, three, four, five.", True), ("Go. Go on.", False)],
    ),
    ("sentence:keyword", {"N": 2, "word": "Tea"}, [("No. Hot tea!", True), ("Tea. No.", False), ("Tea.", False)]),
    ("words:alphabet", {}, [("Yes, zebras and big cats", True), ("a c", False), ("1 2", False), ("***", False)]),
    ("words:consonants", {}, [("Strong words", True), ("Strong is a word", False)]),
    (
        "words:keywords_specific_position",
        {"keyword": "tea", "n": 2, "m": 3},
        [("No. We like Tea.", True), ("We like tea.", False), ("No. Tea.", False)],
    ),
    ("words:last_first", {}, [("We go. Go on! On we go.", True), ("We go. They stay.", False)]),
    ("words:no_consecutive", {}, [("big cats big", True), ("big Bears", False)]),
    ("words:palindrome", {}, [(_PALINDROMES.title(), True), (_PALINDROMES[6:] + " noon", False)]),
    ("words:paragraph_last_first", {}, [("So it is so.\n\nGo, go!", True), ("So it is.", False)]),
    ("words:prime_lengths", {}, [("We are there", True), ("We were", False), ("I", False)]),
    ("words:repeats", {"small_n": 2}, [("go, Go. on", True), ("go go GO", False)]),
    ("words:vowel", {}, [("a red idea", True), ("a red idol", False)]),
    ("words:words_position", {"keyword": "tea"}, [("Hot tea or cold tea, yes", True), ("Tea is tea", False)]),
]


@pytest.mark.parametrize(
    "kind, kwargs, response, verdict",
    [
        pytest.param(kind, kwargs, *case, id=f"{kind}-{number}")
        for kind, kwargs, cases in _CASES
        for number, case in enumerate(cases)
    ],
)
def test_verdict(kind, kwargs, response, verdict):
    assert IFBENCH[kind](response, **kwargs) is verdict


def test_each_kind_with_a_checker_has_both_verdicts():
    seen = {kind: {verdict for other, _, cases in _CASES if other == kind for _, verdict in cases} for kind in IFBENCH}
    assert all(verdicts == {True, False} for verdicts in seen.values())


def test_prompts_with_an_undefined_kind_are_left_out_and_counted(tmp_path):
    rows = [
        {"key": "a", "prompt": "Say it.", "instruction_id_list": ["words:vowel"], "kwargs": [{"N": None}]},
        {
            "key": "b",
            "prompt": "Say it.",
            "instruction_id_list": ["format:emoji", "count:numbers"],
            "kwargs": [{}, {"N": 2.0}],
        },
        {"key": "c", "prompt": "Say it.", "instruction_id_list": ["format:emoji"], "kwargs": [{}]},
    ]
    path = tmp_path / "ifbench.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (item,), left_out = read_ifbench(str(path), "prompts")
    assert item.id == "a" and left_out == {"format:emoji": 2, "count:numbers": 1}
    assert strict(item.target, "a red idea") == (True,)


def test_the_prompts_of_ifbench(shared):
    path = shared / "data/ifbench/IFBench_test.jsonl"
    if not path.is_file():
        pytest.skip("ifbench/IFBench_test.jsonl is not among the shared data")
    items, left_out = read_ifbench(str(path), "prompts")
    kinds = {instruction.id for item in items for instruction in item.target.instructions}
    assert kinds <= set(IFBENCH) and left_out.keys() == UNDEFINED.keys()
    assert len(IFBENCH) + len(UNDEFINED) == 58
    assert len(items) == 155
