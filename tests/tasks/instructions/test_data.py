"""Prompts with instructions, read from files."""

import json

import pytest

from clinmerge_jax.errors import BadInput
from clinmerge_jax.instructions.checkers import CHECKERS
from clinmerge_jax.instructions.target import Instruction, InstructionTarget
from clinmerge_jax.tasks.instructions.data import read_prompts

_ROW = {
    "key": 7,
    "prompt": "Name three rivers. No commas, please, and more than ten words.",
    "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
    "kwargs": [{"keywords": None}, {"num_words": 11.0, "relation": "at least", "keywords": None}],
}


def _read(tmp_path, *rows):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_prompts(str(path), "prompts")


def test_a_line_is_an_item_whose_target_says_what_was_asked(tmp_path):
    (item,) = _read(tmp_path, _ROW)
    assert (item.id, item.source, item.fields) == ("7", _ROW["prompt"], {"prompt": _ROW["prompt"]})
    asked = (
        Instruction("punctuation:no_comma", {}),
        Instruction("length_constraints:number_words", {"num_words": 11, "relation": "at least"}),
    )
    assert item.target == InstructionTarget(_ROW["prompt"], asked)


def _with(kind: str, **given) -> dict:
    return {**_ROW, "instruction_id_list": [kind], "kwargs": [given]}


@pytest.mark.parametrize(
    "row, message",
    [
        (["key"], "prompts.jsonl:1: is not a JSON object"),
        ({**_ROW, "key": True}, "prompts.jsonl:1: 'key' is neither"),
        ({**_ROW, "prompt": " "}, "prompts.jsonl:1: 'prompt' is empty or not text"),
        ({**_ROW, "prompt": "\ud800"}, "prompts.jsonl:1: holds half of a surrogate pair"),
        ({**_ROW, "instruction_id_list": []}, "'instruction_id_list' is not a list of ids"),
        ({**_ROW, "kwargs": [{}]}, "'kwargs' is not a list of 2 objects"),
        (
            _with("punctuation:no_dash"),
            "key 7: the instruction 'punctuation:no_dash' is unknown; give one of keywords:",
        ),
        (_with("punctuation:no_comma", letter="a"), "key 7: punctuation:no_comma has letter but takes no arguments"),
        (_with("detectable_format:number_bullet_lists"), "has no arguments but takes num_bullets"),
        (_with("detectable_format:number_bullet_lists", num_bullets=True), "num_bullets is True; give a whole number"),
        (_with("detectable_format:number_bullet_lists", num_bullets=2.5), "num_bullets is 2.5; give a whole number"),
        (_with("detectable_format:number_bullet_lists", num_bullets=-1), "num_bullets is -1; give a whole number"),
        (_with("startend:end_checker", end_phrase=" "), "end_phrase is ' '; give text"),
        (_with("keywords:existence", keywords=[]), "keywords is []; give a list of texts"),
        (_with("keywords:existence", keywords=["a", 3]), "keywords is 3; give text"),
        (_with("keywords:forbidden_words", forbidden_words="ab"), "forbidden_words is 'ab'; give a list of texts"),
        (_with("language:response_language", language="xx"), "language is 'xx'; give one of af, ar, bg"),
        (
            _with("length_constraints:number_words", num_words=3, relation="more than"),
            "relation is 'more than'; give one of less than, at least",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_line_and_key(tmp_path, row, message):
    with pytest.raises(BadInput) as error:
        _read(tmp_path, row)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_two_rows_with_one_key_are_refused(tmp_path):
    with pytest.raises(BadInput, match=r"prompts.jsonl:2: has the same key as .*prompts.jsonl:1"):
        _read(tmp_path, _ROW, {**_ROW, "key": "7"})


def test_the_prompts_of_ifeval(shared):
    path = shared / "data/ifeval/input_data.jsonl"
    if not path.is_file():
        pytest.skip("ifeval/input_data.jsonl is not among the shared data")
    items = read_prompts(str(path), "prompts")
    kinds = [instruction.id for item in items for instruction in item.target.instructions]
    assert (len(items), len(kinds)) == (541, 834)
    assert set(kinds) == set(CHECKERS) and len(CHECKERS) == 25
