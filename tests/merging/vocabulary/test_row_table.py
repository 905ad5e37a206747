"""Which of its own rows each model has for the tokens of the result: given tokenizers, padding and cutting."""

import json

import numpy as np
import pytest
import tokenizers
from alignment_checks import check_rows, result_tokenizer, rule_auto
from tokenizer_builders import LLAMA_3_SPECIALS, llama_2, llama_3, llama_3_core, tokens_by_id
from tokenizers import models

from clinmerge_jax.errors import BadInput
from clinmerge_jax.merging.vocabulary.alignment import align


def test_base_takes_the_bases_tokens_and_names_what_is_dropped(write):
    ours = [f"<|ours_{i}|>" for i in range(30)]
    parents = {"a": llama_3(ours, shuffle=1), "base": llama_3(["<only base>"])}
    sources = {name: write(name, parent) for name, parent in parents.items()}
    vocabulary = align(sources, base="base", leading="a", tokenizer="base", special_rows=False)
    assert list(vocabulary.tokens) == tokens_by_id(parents["base"])
    check_rows(vocabulary, parents, "base", rule_auto)
    assert vocabulary.files["tokenizer.json"] == sources["base"].path / "tokenizer.json"
    (dropped,) = [note for note in vocabulary.notes if "not in the result" in note]
    assert dropped.count("<|ours_") == 10 and "30 tokens" in dropped and "20 more" in dropped


@pytest.mark.parametrize("outside", [False, True])
def test_a_named_models_tokenizer_or_a_folders(write, tmp_path, outside):
    parents = {"a": llama_3(["<a>"], shuffle=1), "b": llama_3(["<b>", "<a>"], shuffle=2)}
    sources = {name: write(name, parent) for name, parent in parents.items()}
    chosen, tokenizer = "b", parents["b"]
    if outside:
        tokenizer = llama_3(["<b>"], shuffle=9)
        (tmp_path / "outside").mkdir()
        tokenizer.save(str(tmp_path / "outside" / "tokenizer.json"))
        chosen = str(tmp_path / "outside")
    vocabulary = align(sources, base="", leading="a", tokenizer=chosen, special_rows=False)
    assert list(vocabulary.tokens) == tokens_by_id(tokenizer)
    check_rows(vocabulary, parents, "", rule_auto)
    assert result_tokenizer(vocabulary).get_vocab() == tokenizer.get_vocab()


def test_embeddings_padded_differently_align_by_the_tokenizer(write):
    parent = llama_2()
    size = parent.get_vocab_size(True)
    sources = {"a": write("a", parent, extra=2), "b": write("b", parent, extra=30)}
    vocabulary = align(sources, base="", leading="a")
    assert vocabulary.size == size + 2 and vocabulary.config_updates == {"vocab_size": size + 2}
    for name in "ab":
        assert [vocabulary.donors(name, row) for row in range(size)] == [((name, row),) for row in range(size)]
        assert all(vocabulary.donors(name, row) == () for row in range(size, size + 2))
    assert not vocabulary.files  # the leading model's stay
    assert f"config.a {size + 2}, config.b {size + 30}" in "\n".join(vocabulary.notes)


def test_a_row_whose_token_only_added_tokens_lists_is_no_padding(write):
    parent = llama_2()
    sources = {"a": write("a", parent, extra=1), "b": write("b", parent)}
    (sources["a"].path / "added_tokens.json").write_text(json.dumps({"[PAD]": parent.get_vocab_size(True)}))
    with pytest.raises(BadInput, match=r"1 tokens such as '\[PAD\]' are only in config\.a;"):
        align(sources, base="", leading="a")
    vocabulary = align(sources, base="", leading="b", tokenizer="union")
    row = vocabulary.tokens.index("[PAD]")
    assert vocabulary.donors("a", row) == vocabulary.donors("b", row) == (("a", row),)
    assert result_tokenizer(vocabulary).token_to_id("[PAD]") == row


@pytest.mark.parametrize("tokenizer", ["", "union"])
def test_padding_rows_are_zeros(write, tokenizer):
    sources = {"a": write("a", llama_3()), "b": write("b", llama_3(["<b>"] if tokenizer else []))}
    vocabulary = align(sources, base="", leading="a", tokenizer=tokenizer, pad_to_multiple_of=64)
    count = len(vocabulary.tokens)
    assert vocabulary.size % 64 == 0 and count < vocabulary.size < count + 64
    assert vocabulary.config_updates["vocab_size"] == vocabulary.size
    assert all(vocabulary.donors(name, row) == () for name in "ab" for row in range(count, vocabulary.size))
    assert "zeros" in "\n".join(vocabulary.notes)


def test_different_rows_are_refused_unless_they_are_to_be_cut(write, caplog):
    sources = {"a": write("a", llama_3()), "b": write("b", llama_3(["<b>", "<c>"]))}
    size = sources["a"].config["vocab_size"]
    sizes = rf"config\.a {size}, config\.b {size + 2}"
    with pytest.raises(BadInput, match=rf"{sizes}.*2 tokens such as '<b>'.*union, base.*cut_to_common"):
        align(sources, base="", leading="a")
    with caplog.at_level("WARNING"):
        vocabulary = align(sources, base="", leading="a", cut_to_common=True, special_rows=False)
    assert vocabulary.size == size and not vocabulary.fill and not vocabulary.files
    for name in "ab":
        np.testing.assert_array_equal(vocabulary.rows[name], np.arange(size))
    notes = "\n".join(vocabulary.notes)
    assert "cut to the first" in notes and "config.b loses 2 tokens ('<b>', '<c>')" in notes
    assert "cut to the first" in caplog.text


def test_cutting_does_not_mix_tokens(write):
    sources = {"a": write("a", llama_3()), "b": write("b", llama_3(["<b>"], shuffle=1))}
    with pytest.raises(BadInput, match="cutting would mix them"):
        align(sources, base="", leading="a", cut_to_common=True)


def test_without_tokenizers_sizes_must_agree_or_be_cut(write):
    sources = {"a": write("a", None, rows=16), "b": write("b", None, rows=20)}
    with pytest.raises(BadInput, match=r"config\.a: has no tokenizer to align by.*config\.a 16, config\.b 20"):
        align(sources, base="", leading="a")
    vocabulary = align(sources, base="", leading="a", cut_to_common=True)
    assert vocabulary.size == 16 and vocabulary.tokens == ()
    assert align({"a": sources["a"], "c": write("c", None, rows=16)}, base="", leading="a") is None


def test_ids_that_mean_different_tokens_are_refused(write):
    first = write("a", llama_3())
    moved = {"a": first, "b": write("b", llama_3(shuffle=1))}
    with pytest.raises(BadInput, match=r"config\.b: token .* has id \d+ there and \d+ in config\.a; set the tokenizer"):
        align(moved, base="", leading="a")
    words = {word: index for index, word in enumerate(llama_3_core(0)[0])}
    renamed = {"Fever" if index == 300 else word: index for word, index in words.items()}
    one, other = (tokenizers.Tokenizer(models.WordLevel(ids, unk_token="a")) for ids in (words, renamed))
    sources = {"a": write("c", one), "b": write("d", other)}
    with pytest.raises(BadInput, match=r"config\.d: id 300 is 'Fever' there and .* in config\.c"):
        align(sources, base="", leading="a")


def test_reserved_tokens_may_be_renamed_in_place(write):
    renamed = tuple("<|im_start|>" if token == LLAMA_3_SPECIALS[-1] else token for token in LLAMA_3_SPECIALS)
    sources = {"a": write("a", llama_3()), "b": write("b", llama_3(specials=renamed))}
    assert align(sources, base="", leading="a") is None
    vocabulary = align(sources, base="", leading="a", tokenizer="union", special_rows=False)
    row = vocabulary.tokens.index("<|im_start|>")
    assert row == vocabulary.size - 1 and vocabulary.donors("a", row) == (("b", row - 1),)
