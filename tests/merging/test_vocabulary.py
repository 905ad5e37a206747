"""Alignment of vocabularies: which row of which model each token of the result gets, and the tokenizer it gets."""

import dataclasses
import functools
import json
import random
import re

import numpy as np
import pytest
import support
import tokenizers
import transformers
from tokenizer_builders import (
    BOS,
    EOT,
    HEADER,
    HEADER_END,
    LLAMA_3_SPECIALS,
    TEXTS,
    llama_2,
    llama_3,
    llama_3_core,
    tokens_by_id,
    write_model,
)
from tokenizers import AddedToken, models

from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.safetensors import read_tensor
from clinmerge_jax.checkpoint.tokenizer import read_vocabulary
from clinmerge_jax.errors import BadInput
from clinmerge_jax.merging.recipe import TokenSource
from clinmerge_jax.merging.vocabulary import align, untrained_special_rows

OURS = [f"<|ours_{i}|>" for i in range(300)]


@pytest.fixture
def write(tmp_path):
    return functools.partial(write_model, tmp_path)


def _result_tokenizer(vocabulary):
    content = vocabulary.files["tokenizer.json"]
    return tokenizers.Tokenizer.from_str((content if isinstance(content, bytes) else content.read_bytes()).decode())


def _encodes_as(result, parent, texts):
    for text in texts:
        assert result.encode(text, add_special_tokens=False).tokens == (
            parent.encode(text, add_special_tokens=False).tokens
        ), text


def _texts_with(tokens, seed=0):
    """Texts with these added tokens between, before and after words, and side by side."""
    generator = random.Random(seed)
    mixed = [
        "".join(f"{generator.choice(TEXTS)}{token}" for token in tokens[i : i + 7]) for i in range(0, len(tokens), 7)
    ]
    return [*TEXTS, *mixed, "".join(tokens), " ".join(tokens)]


def _rule_owner(token, owners, base):
    return owners[:1] if base not in owners else [base]


def _rule_mean(token, owners, base):
    return owners


def _rule_auto(token, owners, base):
    return [base] if base in owners else owners


def _check_rows(vocabulary, parents, base, rule):
    """Every token's donors in every model, against the tokenizers' own ids."""
    assert len(vocabulary.tokens) <= vocabulary.size
    for row, token in enumerate(vocabulary.tokens):
        owners = [name for name, parent in parents.items() if parent.token_to_id(token) is not None]
        for name in parents:
            chosen = [name] if name in owners else rule(token, owners, base)
            expected = tuple((one, parents[one].token_to_id(token)) for one in chosen)
            assert vocabulary.donors(name, row) == expected, (name, token)


# Unions


def _interleaved(made):
    """Two tokenizers with 300 added tokens each, 150 in common, at different ids."""
    theirs = [f"<|theirs_{i}|>" for i in range(150)]
    mixed = [token for pair in zip(OURS[::2], theirs) for token in pair]
    random.Random(5).shuffle(mixed)
    ours = [AddedToken(token, normalized=False, special=index % 3 == 0) for index, token in enumerate(OURS)]
    mixed = [AddedToken(token, normalized=False, special=index % 5 == 0) for index, token in enumerate(mixed)]
    return made(ours), made(mixed[:200], inside=[token.content for token in mixed[200:]], shuffle=3), theirs


@pytest.mark.parametrize("made", [llama_3, llama_2], ids=["llama_3", "llama_2"])
@pytest.mark.parametrize("rule", [_rule_auto, _rule_owner, _rule_mean])
def test_union_encodes_each_parents_text_as_before_and_each_token_has_its_row(write, made, rule):
    first, second, theirs = _interleaved(made)
    third = made(["<|third|>", *theirs[:9]], shuffle=8)
    parents = {"a": first, "b": second, "c": third}
    sources = {name: write(name, parent) for name, parent in parents.items()}
    missing = rule.__name__.removeprefix("_rule_")
    vocabulary = align(sources, base="", leading="a", tokenizer="union", missing=missing, special_rows=False)

    words = set().union(*(parent.get_vocab(True) for parent in parents.values()))
    assert set(vocabulary.tokens) == words and len(vocabulary.tokens) == len(words) == vocabulary.size
    order = [*tokens_by_id(first), *(token for token in tokens_by_id(second) if token in theirs), "<|third|>"]
    assert list(vocabulary.tokens) == order
    _check_rows(vocabulary, parents, "", rule)

    result = _result_tokenizer(vocabulary)
    assert [result.token_to_id(token) for token in vocabulary.tokens] == list(range(vocabulary.size))
    assert _flags(result) == {**_flags(third), **_flags(second), **_flags(first)}  # the first that has it
    own = {"a": OURS, "b": [*OURS[::2], *theirs], "c": ["<|third|>", *theirs[:9]]}
    for name, parent in parents.items():
        texts = _texts_with(own[name])
        _encodes_as(result, parent, texts)
        assert any(len(parent.encode(text).tokens) > 40 for text in texts)
        for text in texts:
            ids = parent.encode(text, add_special_tokens=False).ids
            again = result.encode(text, add_special_tokens=False).ids
            assert [vocabulary.rows[name][index] for index in again] == ids


def _flags(tokenizer):
    """How each added token is found, and whether it is special."""
    return {
        token.content: (token.special, token.lstrip, token.rstrip, token.single_word, token.normalized)
        for token in tokenizer.get_added_tokens_decoder().values()
    }


def test_union_keeps_how_each_parents_tokens_are_found_in_text(write):
    ours, theirs = AddedToken("<a>", lstrip=True, normalized=False), AddedToken("<b>", rstrip=True, normalized=False)
    parents = {"a": llama_3([ours]), "b": llama_3([AddedToken("dose", single_word=True, normalized=False), theirs])}
    vocabulary = align(
        {name: write(name, parent) for name, parent in parents.items()}, base="", leading="a", tokenizer="union"
    )
    result = _result_tokenizer(vocabulary)
    _encodes_as(result, parents["a"], ["fever  <a>  and", " <a>"])
    _encodes_as(result, parents["b"], ["fever  <b>  and", "a dose, doses", "<b> dose"])
    plain = llama_3([AddedToken("<a>", normalized=False), AddedToken("<b>", normalized=False)])
    assert plain.encode("x <b> y").tokens != parents["b"].encode("x <b> y").tokens  # so the flags matter


def test_union_says_where_a_shared_token_is_found_differently(write):
    parents = [llama_3([AddedToken("<a>", lstrip=strip, normalized=False), f"<{strip}>"]) for strip in (True, False)]
    sources = {name: write(name, parent) for name, parent in zip("ab", parents)}
    vocabulary = align(sources, base="", leading="a", tokenizer="union")
    assert any("'<a>'" in note and "config.b" in note for note in vocabulary.notes)


def test_union_starts_with_the_bases_ids_and_fills_by_the_base_first(write):
    parents = {"instruct": llama_3(["<i>"], shuffle=1), "base": llama_3(), "clinical": llama_3(["<c>"], shuffle=2)}
    sources = {name: write(name, parent) for name, parent in parents.items()}
    vocabulary = align(sources, base="base", leading="instruct", tokenizer="union", special_rows=False)
    assert list(vocabulary.tokens) == [*tokens_by_id(parents["base"]), "<i>", "<c>"]
    _check_rows(vocabulary, parents, "base", _rule_auto)
    row = vocabulary.tokens.index("<c>")
    assert vocabulary.donors("base", row) == (("clinical", parents["clinical"].token_to_id("<c>")),)


@pytest.mark.parametrize("rule", [_rule_auto, _rule_owner, _rule_mean])
def test_rows_that_a_model_lacks_by_each_rule_where_the_base_is_not_first(write, rule):
    parents = {"a": llama_3(["<all>", "<a>"]), "b": llama_3(["<all>"], shuffle=1), "c": llama_3(["<c>"], shuffle=2)}
    sources = {name: write(name, parent) for name, parent in parents.items()}
    missing = rule.__name__.removeprefix("_rule_")
    vocabulary = align(sources, base="b", leading="a", tokenizer="union", missing=missing, special_rows=False)
    _check_rows(vocabulary, parents, "b", rule)
    row = vocabulary.tokens.index("<all>")
    assert [name for name, _ in vocabulary.donors("c", row)] == (["a", "b"] if missing == "mean" else ["b"])


def test_union_tokenizer_loads_with_transformers(write, tmp_path):
    first, second = llama_3(["<a>"]), llama_3(["<b>", AddedToken("<c>", special=True)], shuffle=1)
    decoder = {
        str(index): {"content": token.content, "special": token.special, "normalized": token.normalized}
        for index, token in first.get_added_tokens_decoder().items()
    }
    settings = {"bos_token": BOS, "eos_token": EOT, "added_tokens_decoder": decoder}
    template = "{{ bos_token }}{{ messages[0].content }}<b>"
    sources = {"a": write("a", first, settings=settings), "b": write("b", second, settings={"chat_template": template})}
    (sources["a"].path / "tokenizer.model").write_bytes(b"kept")
    (sources["a"].path / "added_tokens.json").write_text(json.dumps({"<a>": first.token_to_id("<a>")}))
    vocabulary = align(sources, base="a", leading="b", tokenizer="union")
    ids = {token: vocabulary.tokens.index(token) for token in ("<a>", "<b>", "<c>")}
    assert json.loads(vocabulary.files["added_tokens.json"]) == ids
    assert vocabulary.files["tokenizer.model"] == sources["a"].path / "tokenizer.model"
    listed = json.loads(vocabulary.files["tokenizer_config.json"])["added_tokens_decoder"]
    assert {one["content"]: int(index) for index, one in listed.items()} == {
        token: vocabulary.tokens.index(token) for token in (*LLAMA_3_SPECIALS, *ids)
    }
    assert listed[str(ids["<c>"])]["special"] and not listed[str(ids["<b>"])]["special"]
    folder = tmp_path / "result"
    folder.mkdir()
    for name, content in vocabulary.files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    loaded = transformers.AutoTokenizer.from_pretrained(folder)
    assert loaded.convert_tokens_to_ids(list(vocabulary.tokens)) == list(range(vocabulary.size))
    text = "fever<b>and<c> cough"
    assert loaded.tokenize(text) == second.encode(text, add_special_tokens=False).tokens
    chat = loaded.apply_chat_template([{"role": "user", "content": "fever"}], tokenize=False)
    assert loaded.decode(loaded.encode(text), skip_special_tokens=True) == "fever<b>and cough"
    assert chat == f"{BOS}fever<b>"  # the leading model's template, as the tokenizer has none


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (lambda: llama_3(core=1), "words? .* in one alone"),
        (lambda: llama_2(), "words? .* in one alone"),
        (lambda: llama_3(["e", "<b>"]), r"1 word \('e'\) of both are added tokens of one alone"),
        (lambda: _edited(lambda one: one["model"]["merges"].reverse()), "BPE merges differ from number 1 on"),
        (
            lambda: _edited(lambda one: one["model"].update(ignore_merges=False)),
            "ignore_merges is True in one and False",
        ),
        (lambda: _edited(lambda one: one.update(normalizer={"type": "NFC"})), "their normalizer differs"),
        (lambda: _edited(lambda one: one["pre_tokenizer"]["pretokenizers"].pop(0)), "their pre_tokenizer differs"),
    ],
    ids=["words", "kind", "added", "merges", "ignore_merges", "normalizer", "pre_tokenizer"],
)
def test_a_union_that_cannot_encode_both_is_refused(write, second, reason):
    sources = {"a": write("a", llama_3()), "b": write("b", second())}
    with pytest.raises(
        BadInput, match=rf"^config\.tokenizer: no union of config\.a and config\.b .*{reason}.*give base"
    ):
        align(sources, base="", leading="a", tokenizer="union")


def _edited(change):
    """A Llama 3 tokenizer with one more token and a changed definition."""
    content = json.loads(llama_3(["<b>"]).to_str())
    change(content)
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def test_a_union_into_gaps_among_ids_is_refused(write):
    words = {"the": 0, "fever": 4}
    first, second = (tokenizers.Tokenizer(models.WordLevel(words, unk_token="the")) for _ in "ab")
    first.add_tokens(["<a>"])
    second.add_tokens(["<b>", "<c>", "<d>"])
    sources = {"a": write("a", first, rows=16), "b": write("b", second, rows=16)}
    with pytest.raises(BadInput, match=r"config\.a's tokenizer has gaps among its ids"):
        align(sources, base="", leading="a", tokenizer="union")


def test_older_and_newer_llama_2_conversions_have_no_union_but_align_by_base(write):
    parents = {"a": llama_2(["<a>"]), "b": llama_2(["<b>"], shuffle=1, metaspace=True)}
    sources = {name: write(name, parent) for name, parent in parents.items()}
    with pytest.raises(BadInput, match="no union .* differs"):
        align(sources, base="", leading="a", tokenizer="union")
    vocabulary = align(sources, base="", leading="a", tokenizer="base", special_rows=False)
    assert list(vocabulary.tokens) == tokens_by_id(parents["a"])
    _check_rows(vocabulary, parents, "", _rule_auto)


# A given tokenizer


def test_base_takes_the_bases_tokens_and_names_what_is_dropped(write):
    parents = {"a": llama_3(OURS[:30], shuffle=1), "base": llama_3(["<only base>"])}
    sources = {name: write(name, parent) for name, parent in parents.items()}
    vocabulary = align(sources, base="base", leading="a", tokenizer="base", special_rows=False)
    assert list(vocabulary.tokens) == tokens_by_id(parents["base"])
    _check_rows(vocabulary, parents, "base", _rule_auto)
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
    _check_rows(vocabulary, parents, "", _rule_auto)
    assert _result_tokenizer(vocabulary).get_vocab() == tokenizer.get_vocab()


def test_a_token_that_no_model_has_is_refused_by_name_unless_it_has_a_source(write, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    llama_3([f"<new {i}>" for i in range(12)]).save(str(outside / "tokenizer.json"))
    sources = {name: write(name, llama_3(shuffle=index)) for index, name in enumerate("ab")}
    arguments = {"base": "", "leading": "a", "tokenizer": str(outside), "special_rows": False}
    with pytest.raises(BadInput, match=r"12 tokens \('<new 0>'.*and 2 more\) .* no row in any model"):
        align(sources, **arguments)
    with pytest.raises(BadInput, match=r"1 token \('<new 3>'\)"):
        align(sources, token_sources={f"<new {i}>": TokenSource("zero") for i in range(12) if i != 3}, **arguments)
    with pytest.raises(BadInput, match=r"tokens\.<new 0>: no model has a row"):
        align(sources, token_sources={f"<new {i}>": TokenSource("zero" * (i > 0)) for i in range(12)}, **arguments)
    given = {f"<new {i}>": TokenSource(("b", i)) for i in range(12)}
    vocabulary = align(sources, token_sources=given, **arguments)
    for i in range(12):
        assert vocabulary.donors("a", vocabulary.tokens.index(f"<new {i}>")) == (("b", i),)


def test_a_token_whose_id_lies_past_the_embedding_counts_as_lacking(write):
    parents = {"a": llama_3(["<pad>"]), "b": llama_3(["<pad>"], shuffle=1)}
    size = parents["a"].get_vocab_size(True)
    sources = {"a": write("a", parents["a"], rows=size - 1), "b": write("b", parents["b"])}
    vocabulary = align(sources, base="", leading="a", tokenizer="union", special_rows=False)
    row = vocabulary.tokens.index("<pad>")
    assert vocabulary.donors("a", row) == vocabulary.donors("b", row) == (("b", parents["b"].token_to_id("<pad>")),)
    sources = {"a": sources["a"], "b": write("b2", parents["b"], rows=size - 1)}
    with pytest.raises(BadInput, match=r"1 token \('<pad>'\)"):
        align(sources, base="", leading="a", tokenizer="a", special_rows=False)


# Sources of single tokens


def test_sources_of_single_tokens(write):
    parents = {"a": llama_3(["<a>", "<both>"]), "b": llama_3(["<b>", "<both>"], shuffle=1), "c": llama_3()}
    sources = {name: write(name, parent) for name, parent in parents.items()}
    ids = {name: parent.token_to_id for name, parent in parents.items()}
    given = {
        "<a>": TokenSource(("b", "<b>")),
        "<b>": TokenSource("zero"),
        "<both>": TokenSource("b", force=True),
        EOT: TokenSource(("c", 7), force=True),
        HEADER: TokenSource("zero", force=True),
        BOS: TokenSource("", force=True),
        "a": TokenSource("b"),  # nobody lacks it
    }
    vocabulary = align(
        sources, base="c", leading="a", tokenizer="union", token_sources=given, special_rows=False, missing="owner"
    )
    expected = {
        "<a>": {"a": [("a", ids["a"]("<a>"))], "b": [("b", ids["b"]("<b>"))], "c": [("b", ids["b"]("<b>"))]},
        "<b>": {"a": [], "b": [("b", ids["b"]("<b>"))], "c": []},
        "<both>": dict.fromkeys("abc", [("b", ids["b"]("<both>"))]),
        EOT: dict.fromkeys("abc", [("c", 7)]),
        HEADER: dict.fromkeys("abc", []),
        BOS: dict.fromkeys("abc", [("c", ids["c"](BOS))]),
        "a": {name: [(name, ids[name]("a"))] for name in "abc"},
    }
    for token, by_model in expected.items():
        row = vocabulary.tokens.index(token)
        assert {name: list(vocabulary.donors(name, row)) for name in "abc"} == by_model, token


def test_sources_of_single_tokens_apply_where_models_agree(write):
    sources = {name: write(name, llama_3()) for name in "ab"}
    row = llama_3().token_to_id(EOT)
    vocabulary = align(sources, base="", leading="a", token_sources={EOT: TokenSource("b", force=True)})
    assert vocabulary.donors("a", row) == (("b", row),) and vocabulary.donors("a", 3) == (("a", 3),)
    assert not vocabulary.files


@pytest.mark.parametrize(
    ("token", "source", "message"),
    [
        ("<none>", TokenSource("a"), r"tokens\.<none>: is not a token of the result"),
        (EOT, TokenSource("z"), r"z is not one of the models"),
        ("<b>", TokenSource("a"), r"a has no row for token '<b>'"),
        (EOT, TokenSource(("b", "<none>")), r"b has no row for token '<none>'"),
        (EOT, TokenSource(("b", 100_000)), r"b has no row 100000"),
        (EOT, TokenSource(("b", -1)), r"b has no row -1"),
    ],
)
def test_bad_sources_of_single_tokens_are_refused(write, token, source, message):
    sources = {"a": write("a", llama_3()), "b": write("b", llama_3(["<b>"]))}
    with pytest.raises(BadInput, match=message):
        align(sources, base="", leading="a", tokenizer="union", token_sources={token: source})


# Padding and cutting


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


def test_cutting_drops_token_ids_that_it_cuts_off(write):
    gone = llama_3().get_vocab_size(True)
    config = {"eos_token_id": [3, gone], "pad_token_id": gone, "sep_token_id": gone + 1}
    sources = {"a": write("a", llama_3(["<b>"]), **config), "b": write("b", llama_3())}
    vocabulary = align(sources, base="", leading="a", cut_to_common=True)
    updates = {"vocab_size": gone, "eos_token_id": [3], "pad_token_id": None}  # sep_token_id was past the rows before
    assert vocabulary.config_updates == updates


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
    with pytest.raises(BadInput, match=r"config\.b: token .* has id \d+ there and \d+ in config\.a; give a tokenizer"):
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


# Special rows


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("how", ["zeros", "same", "small"])
def test_untrained_special_rows_are_found(write, how, tied):
    tokens = LLAMA_3_SPECIALS[-4:]
    arguments = {} if how == "small" else {how: tokens}
    model = write("a", llama_3(), tied=tied, **arguments)
    if how == "small":
        tensors = {name: read_tensor(entry) for name, entry in model.tensors.items()}
        for name in tensors:
            if name == ("model.embed_tokens.weight" if tied else "lm_head.weight"):  # one of the two is enough
                rows = [llama_3().token_to_id(token) for token in tokens]
                norms = np.linalg.norm(tensors[name], axis=-1)
                tensors[name][0] = 0  # one word does not set the scale
                tensors[name][rows] *= 0.009 * np.median(norms) / norms[rows, None]
                tensors[name][llama_3().token_to_id(BOS)] *= 0.03
        model = open_checkpoint(
            str(support.write_llama(model.path.parent / "a2", tensors=tensors, **model.config)), "config.a"
        )
        llama_3().save(str(model.path / "tokenizer.json"))
    assert untrained_special_rows(model, read_vocabulary(model, "config.a")) == set(tokens)


def test_two_equal_special_rows_or_zero_rows_of_words_are_no_sign(write):
    model = write("a", llama_3(), same=LLAMA_3_SPECIALS[-2:], zeros=["a", "e"])
    assert untrained_special_rows(model, read_vocabulary(model, "config.a")) == set()


def test_untrained_special_rows_come_from_the_other_parent(write):
    chat, reserved = [HEADER, HEADER_END, EOT], LLAMA_3_SPECIALS[-6:]
    parent = llama_3()
    sources = {
        "instruct": write("instruct", parent, extra=3, same=reserved),
        "clinical": write("clinical", parent, extra=3, same=[*chat, *reserved]),
        "base": write("base", parent, extra=3, zeros=[*chat, *reserved]),
    }
    vocabulary = align(sources, base="base", leading="instruct")
    ids = {token: parent.token_to_id(token) for token in chat}
    for row in range(vocabulary.size):
        for name in sources:
            taken = "instruct" if row in ids.values() else name
            assert vocabulary.donors(name, row) == ((taken, row),)
    told = [note for note in vocabulary.notes if "never trained" in note]
    assert [note.split(":")[0] for note in told] == ["config.clinical", "config.base"]
    assert all(all(token in note for token in chat) and "come from config.instruct" in note for note in told)
    assert vocabulary.summary["untrained"] == {"clinical": chat, "base": chat}
    json.dumps(vocabulary.summary)
    assert align(sources, base="base", leading="instruct", special_rows=False) is None


def test_untrained_in_every_model_stays_as_it_is(write):
    sources = {name: write(name, llama_3(), zeros=LLAMA_3_SPECIALS[-6:]) for name in "ab"}
    assert align(sources, base="", leading="a") is None


def test_special_rows_of_a_model_that_is_still_to_be_made_are_left(write):
    model, other = write("a", llama_3(), zeros=[EOT]), write("b", llama_3(["<b>"]))
    planned = {
        name: dataclasses.replace(one, file=one.file.with_name("planned")) for name, one in model.tensors.items()
    }
    sources = {"a": dataclasses.replace(model, tensors=planned), "b": other}
    vocabulary = align(sources, base="", leading="a", tokenizer="union")
    row = vocabulary.tokens.index(EOT)
    assert vocabulary.donors("a", row) == (("a", row),)
    assert any("config.a is not made yet" in note for note in vocabulary.notes)


def test_special_rows_follow_tokens_to_other_ids(write):
    parents = {"a": llama_3(["<a>"]), "b": llama_3(["<b>"], shuffle=1, specials=LLAMA_3_SPECIALS[::-1])}
    sources = {"a": write("a", parents["a"]), "b": write("b", parents["b"], zeros=[EOT])}
    vocabulary = align(sources, base="", leading="a", tokenizer="union")
    row = vocabulary.tokens.index(EOT)
    expected = (("a", parents["a"].token_to_id(EOT)),)
    assert vocabulary.donors("b", row) == vocabulary.donors("a", row) == expected
    row = vocabulary.tokens.index(HEADER)
    assert vocabulary.donors("b", row) == (("b", parents["b"].token_to_id(HEADER)),)


# config.json and the rest


def test_token_ids_of_the_configs_follow_their_tokens(write):
    lead = llama_3(["<end>", "<gone>"], specials=LLAMA_3_SPECIALS[::-1])
    base = llama_3(["<end>"], shuffle=1)
    config = {
        "bos_token_id": lead.token_to_id(BOS),
        "eos_token_id": [lead.token_to_id(EOT), lead.token_to_id("<gone>"), lead.token_to_id("<end>")],
        "pad_token_id": lead.token_to_id("<gone>"),
        "unk_token_id": -1,
        "sep_token_id": [lead.token_to_id("<gone>")],
    }
    sources = {"a": write("a", lead, **config), "base": write("base", base, settings={"eos_token": EOT})}
    generation = {"eos_token_id": lead.token_to_id("<gone>"), "temperature": 0.6}
    (sources["a"].path / "generation_config.json").write_text(json.dumps(generation))
    vocabulary = align(sources, base="base", leading="a", tokenizer="base")
    assert vocabulary.config_updates == {
        "vocab_size": base.get_vocab_size(True),
        "bos_token_id": base.token_to_id(BOS),
        "eos_token_id": [base.token_to_id(EOT), base.token_to_id("<end>")],
        "pad_token_id": None,
        "sep_token_id": None,
    }
    # the tokenizer's own end where the leading model's is gone
    assert vocabulary.generation_config_updates == {"eos_token_id": base.token_to_id(EOT)}
    written = json.loads(vocabulary.files["generation_config.json"])
    assert written == {"eos_token_id": base.token_to_id(EOT), "temperature": 0.6}
    assert any("pad_token_id" in note and "none" in note for note in vocabulary.notes)


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
