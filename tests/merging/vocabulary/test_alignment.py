"""Alignment of vocabularies as a whole: when there is nothing to align, and what is refused."""

import re

import numpy as np
import pytest
from tokenizer_builders import EOT, llama_3

from clinmerge_jax.errors import BadInput
from clinmerge_jax.merging.vocabulary.alignment import align


def test_models_that_agree_need_no_alignment(write):
    sources = {"a": write("a", llama_3(), extra=5), "b": write("b", llama_3(), extra=5)}
    for tokenizer in ("", "union", "base", "b"):
        assert align(sources, base="", leading="a", tokenizer=tokenizer) is None
    assert align(sources, base="", leading="a", pad_to_multiple_of=sources["a"].config["vocab_size"]) is None


def test_a_given_tokenizers_files_are_taken_even_where_all_tokens_agree(write):
    sources = {"a": write("a", llama_3(), extra=5), "b": write("b", llama_3(), extra=5, settings={"eos_token": EOT})}
    assert align(sources, base="", leading="a", tokenizer="union") is None
    vocabulary = align(sources, base="", leading="a", tokenizer="b")
    assert vocabulary.files["tokenizer_config.json"] == sources["b"].path / "tokenizer_config.json"
    for name, rows in vocabulary.rows.items():
        np.testing.assert_array_equal(rows, np.arange(sources[name].config["vocab_size"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"missing": "best"}, r"missing_rows: 'best' is unknown"),
        ({"pad_to_multiple_of": -8}, r"pad_to_multiple_of: is -8"),
        ({"tokenizer": "union", "cut_to_common": True}, r"is 'union', .* cut_to_common is set"),
        ({"base": "z"}, r"base: 'z' is not one of the models"),
        ({"leading": ""}, r"leading: '' is not one of the models"),
        ({"tokenizer": "./nowhere"}, r"config\.tokenizer: \./nowhere is not a folder"),
    ],
)
def test_bad_arguments_are_refused(write, arguments, message):
    sources = {name: write(name, llama_3([f"<{name}>"])) for name in "ab"}
    with pytest.raises(BadInput, match=message) as caught:
        align(sources, **{"base": "", "leading": "a", **arguments})
    assert not re.search(r"\n", str(caught.value))
