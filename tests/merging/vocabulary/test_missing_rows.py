"""Whose row a model takes where it has none of its own, or where the recipe names another's."""

import pytest
from alignment_checks import check_rows, rule_auto, rule_mean, rule_owner
from tokenizer_builders import BOS, EOT, HEADER, llama_3

from clinmerge_jax.errors import BadInput
from clinmerge_jax.merging.recipes.recipe import TokenSource
from clinmerge_jax.merging.vocabulary.alignment import align


@pytest.mark.parametrize("rule", [rule_auto, rule_owner, rule_mean])
def test_rows_that_a_model_lacks_by_each_rule_where_the_base_is_not_first(write, rule):
    parents = {"a": llama_3(["<all>", "<a>"]), "b": llama_3(["<all>"], shuffle=1), "c": llama_3(["<c>"], shuffle=2)}
    sources = {name: write(name, parent) for name, parent in parents.items()}
    missing = rule.__name__.removeprefix("rule_")
    vocabulary = align(sources, base="b", leading="a", tokenizer="union", missing=missing, special_rows=False)
    check_rows(vocabulary, parents, "b", rule)
    row = vocabulary.tokens.index("<all>")
    assert [name for name, _ in vocabulary.donors("c", row)] == (["a", "b"] if missing == "mean" else ["b"])


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
