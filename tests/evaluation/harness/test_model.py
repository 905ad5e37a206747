"""lm-eval's requests answered by the engine and by lm-eval's own adapter for transformers."""

import numpy as np
import pytest
from lm_eval.api.instance import Instance

from clinmerge_jax.errors import BadInput
from clinmerge_jax.evaluation.harness import model as module
from clinmerge_jax.evaluation.harness.model import ClinmergeLM
from clinmerge_jax.evaluation.harness.model_args import MAX_LENGTH, open_engine, read_model_args

from .conftest import LENGTH, MODEL

LONG = "The old parrot sleeps near the river and dreams of the warm bread that the baker brings. " * 4
CONTEXTS = ("The patient has", "Answer: ", "A red bird\n", "", LONG)
CONTINUATIONS = (" a fever", "A", " the warm bread that the baker brings near the river")
SYSTEM = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
NO_SYSTEM = "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}{{ m['content'] }}{% endfor %}"  # fmt: skip  # noqa: E501


def requests(kind, *arguments):
    return [Instance(kind, {}, one, index) for index, one in enumerate(arguments)]


def test_likelihoods_are_those_of_transformers(ours, theirs):
    asked = requests("loglikelihood", *((context, more) for context in CONTEXTS for more in CONTINUATIONS))
    found, expected = ours.loglikelihood(asked), theirs.loglikelihood(asked)
    np.testing.assert_allclose([one for one, _ in found], [one for one, _ in expected], atol=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_what_greedy_decoding_gives_is_greedy(ours):
    (answer,) = ours.generate_until(requests("generate_until", ("The patient has", {"max_gen_toks": 4})))
    asked = requests("loglikelihood", ("The patient has", answer), ("The patient has", " zebra"))
    assert [greedy for _, greedy in ours.loglikelihood(asked)] == [True, False]


def test_rolling_likelihoods_are_those_of_transformers_with_one_bos(ours, theirs, monkeypatch):
    asked = requests("loglikelihood_rolling", ("A red bird sings.",), (LONG,), ("<|begin_of_text|>A red bird sings.",))
    monkeypatch.setattr(theirs, "add_bos_token", False)
    expected = theirs.loglikelihood_rolling(asked)
    found = ours.loglikelihood_rolling(asked)
    np.testing.assert_allclose(found[:2], expected[:2], atol=1e-3)  # sums of up to a hundred tokens
    assert found[2] == pytest.approx(found[0], abs=1e-4)


def test_a_long_continuation_is_scored_in_pieces(ours, monkeypatch):
    asked = requests("loglikelihood", ("The patient has", CONTINUATIONS[2]))
    ((whole, _),) = ours.loglikelihood(asked)
    monkeypatch.setattr(module, "_PIECE", 3)
    assert ours.loglikelihood(asked)[0][0] == pytest.approx(whole, abs=1e-4)


@pytest.mark.parametrize("until", ["river", [" the", "."]])
def test_greedy_answers_are_those_of_transformers(ours, theirs, until):
    settings = {"until": until, "max_gen_toks": 12}
    asked = requests("generate_until", *((context, settings) for context in CONTEXTS if context))
    assert ours.generate_until(asked) == theirs.generate_until(asked)


def test_a_special_token_ends_an_answer_by_its_id(ours, make_engine):
    chat = ours.apply_chat_template([{"role": "user", "content": "Hello"}])
    asked = requests("generate_until", (chat, {"until": ["<|eot|>"], "max_gen_toks": 24}))
    (answer,) = ClinmergeLM(make_engine(stop_ids=()), ours.tokenizer).generate_until(asked)
    assert answer and [answer] == ours.generate_until(asked)


def test_an_empty_text_ends_nothing(ours):
    asked = requests("generate_until", *(("The patient has", {"until": u, "max_gen_toks": 8}) for u in ([], [""])))
    one, other = ours.generate_until(asked)
    assert one and one == other


def test_sampled_answers_follow_from_the_seed_and_the_place(ours):
    def sampled(seed):
        lm = ClinmergeLM(ours.engine, ours.tokenizer, seed=seed)
        settings = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 8}
        return lm.generate_until(requests("generate_until", *[("The", dict(settings))] * 3))

    assert sampled(1) == sampled(1) != sampled(2)
    assert len(set(sampled(1))) > 1


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"beams": 2, "penalty": 1}, "gen_kwargs: beams, penalty unknown; choose from until, max_gen_toks"),
        ({"num_beams": 4}, "num_beams is 4; beam search is not supported"),
        ({"do_sample": True}, "do_sample is True but temperature is 0"),
        ({"temperature": 1.0, "top_p": 2.0}, "top_p: is 2.0; give over 0, up to 1"),
        ({"max_gen_toks": LENGTH}, f"max_gen_toks {LENGTH} leaves no room for a prompt in the max_length of {LENGTH}"),
    ],
)
def test_generation_arguments_that_are_refused(ours, settings, said):
    with pytest.raises(BadInput, match=said):
        ours.generate_until(requests("generate_until", ("The", {"max_gen_toks": 4, **settings})))


def test_contexts_that_lost_their_beginning_are_counted(ours):
    lm = ClinmergeLM(ours.engine, ours.tokenizer)
    lm.loglikelihood(requests("loglikelihood", (LONG, " a"), (LONG, " b"), ("Short", " a")))
    assert lm.truncated == 2
    lm.generate_until(requests("generate_until", (LONG, {"max_gen_toks": 4}), ("Short", {"max_gen_toks": 4})))
    assert lm.truncated == 3


@pytest.mark.parametrize("continuation, tokens", [("", "has 0 tokens"), (LONG, f"1 to {LENGTH} can be scored")])
def test_a_continuation_that_cannot_be_scored_is_refused(ours, continuation, tokens):
    with pytest.raises(BadInput, match=tokens):
        ours.loglikelihood(requests("loglikelihood", ("The patient", continuation)))


def test_a_context_has_one_bos_whoever_brings_it(ours):
    bos = ours.prefix_token_id
    chat = ours.apply_chat_template([{"role": "user", "content": "Hello"}])
    assert chat.startswith(ours.tokenizer.bos_token)
    for text in (chat, "Hello"):
        assert ours.tok_encode(text)[0] == bos and ours.tok_encode(text).count(bos) == 1


@pytest.mark.parametrize("template", [None, NO_SYSTEM], ids=["system", "no system"])
def test_chat_templates_are_filled_as_lm_eval_does(ours, theirs, monkeypatch, template):
    if template:
        monkeypatch.setattr(ours.tokenizer, "chat_template", template)
    for ask in (True, False):
        assert ours.apply_chat_template(SYSTEM, ask) == theirs.apply_chat_template(SYSTEM, ask)
    assert ours.chat_template(True) == theirs.chat_template(True)


def test_a_missing_chat_template_is_refused(ours, monkeypatch):
    monkeypatch.setattr(ours.tokenizer, "chat_template", None)
    with pytest.raises(BadInput, match="has no chat template"):
        ours.apply_chat_template(SYSTEM)


@pytest.mark.parametrize(
    "given, said",
    [
        ({"model": MODEL, "slotz": 3}, "--model_args: slotz is unknown; choose from model, dtype, slots"),
        ({"model": MODEL, "slots": "many"}, "slots is 'many'; give a whole number"),
        ({"model": MODEL, "dtype": "float8"}, "dtype 'float8' is unknown"),
        ({}, "has no model"),
    ],
)
def test_model_arguments_that_are_refused(given, said):
    with pytest.raises(BadInput, match=said):
        read_model_args(given)


def test_a_batch_size_of_lm_eval_is_refused():
    with pytest.raises(BadInput, match="--batch_size: is auto; leave it out and give --model_args slots=N"):
        ClinmergeLM.create_from_arg_string(f"model={MODEL}", {"batch_size": "auto", "device": "cuda:0"})


@pytest.mark.slow
def test_lm_eval_makes_the_model_from_text_with_mesh_and_int8():
    lm = ClinmergeLM.create_from_arg_string(
        f"model={MODEL},tensor=2,slots=8,max_length=64,int8_weights=True,seed=3", {"batch_size": 1, "device": "cuda:0"}
    )
    assert lm.engine.layout.mesh.shape["tensor"] == 2
    assert (lm.rank, lm.world_size, lm.max_length) == (0, 1, 64)
    ((likelihood, _),) = lm.loglikelihood(requests("loglikelihood", ("The patient has", " a fever")))
    assert likelihood < 0


def test_the_whole_context_is_the_default_where_it_is_short():
    engine, _ = open_engine({"model": MODEL})
    assert engine.length == 512 < MAX_LENGTH
