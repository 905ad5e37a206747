"""Unions of tokenizers: each model's text is encoded as before, or the union is refused."""

import json
import random

import pytest
import tokenizers
import transformers
from alignment_checks import check_rows, result_tokenizer, rule_auto, rule_mean, rule_owner
from tokenizer_builders import BOS, EOT, LLAMA_3_SPECIALS, TEXTS, llama_2, llama_3, tokens_by_id
from tokenizers import AddedToken, models

from clinmerge_jax.errors import BadInput
from clinmerge_jax.merging.vocabulary.alignment import align

OURS = [f"<|ours_{i}|>" for i in range(300)]


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


def _interleaved(made):
    """Two tokenizers with 300 added tokens each, 150 in common, at different ids."""
    theirs = [f"<|theirs_{i}|>" for i in range(150)]
    mixed = [token for pair in zip(OURS[::2], theirs) for token in pair]
    random.Random(5).shuffle(mixed)
    ours = [AddedToken(token, normalized=False, special=index % 3 == 0) for index, token in enumerate(OURS)]
    mixed = [AddedToken(token, normalized=False, special=index % 5 == 0) for index, token in enumerate(mixed)]
    return made(ours), made(mixed[:200], inside=[token.content for token in mixed[200:]], shuffle=3), theirs


@pytest.mark.parametrize("made", [llama_3, llama_2], ids=["llama_3", "llama_2"])
@pytest.mark.parametrize("rule", [rule_auto, rule_owner, rule_mean])
def test_union_encodes_each_parents_text_as_before_and_each_token_has_its_row(write, made, rule):
    first, second, theirs = _interleaved(made)
    third = made(["<|third|>", *theirs[:9]], shuffle=8)
    parents = {"a": first, "b": second, "c": third}
    sources = {name: write(name, parent) for name, parent in parents.items()}
    missing = rule.__name__.removeprefix("rule_")
    vocabulary = align(sources, base="", leading="a", tokenizer="union", missing=missing, special_rows=False)

    words = set().union(*(parent.get_vocab(True) for parent in parents.values()))
    assert set(vocabulary.tokens) == words and len(vocabulary.tokens) == len(words) == vocabulary.size
    order = [*tokens_by_id(first), *(token for token in tokens_by_id(second) if token in theirs), "<|third|>"]
    assert list(vocabulary.tokens) == order
    check_rows(vocabulary, parents, "", rule)

    result = result_tokenizer(vocabulary)
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
    result = result_tokenizer(vocabulary)
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
    check_rows(vocabulary, parents, "base", rule_auto)
    row = vocabulary.tokens.index("<c>")
    assert vocabulary.donors("base", row) == (("clinical", parents["clinical"].token_to_id("<c>")),)


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
        (lambda: llama_3(core=1), "words? .* in only one"),
        (lambda: llama_2(), "words? .* in only one"),
        (lambda: llama_3(["e", "<b>"]), r"1 word \('e'\) of both are added tokens in only one"),
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
    check_rows(vocabulary, parents, "", rule_auto)
