"""Which rows of special tokens a model never trained, and that they come from a model that did."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy
import support
from tokenizer_builders import BOS, EOT, HEADER, HEADER_END, LLAMA_3_SPECIALS, llama_3

from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.formats.safetensors import read_tensor
from clinmerge_jax.checkpoint.tokenizers.tokenizer import read_vocabulary
from clinmerge_jax.merging.plan import open_model, plan_merge
from clinmerge_jax.merging.recipes.recipe import Recipe, Source, VocabularyChoice
from clinmerge_jax.merging.recipes.schedule import Schedule
from clinmerge_jax.merging.vocabulary.alignment import align
from clinmerge_jax.merging.vocabulary.special_rows import untrained_special_rows


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
    lacking = {
        name: [vocabulary.tokens[row] for row in np.flatnonzero(rows < 0)] for name, rows in vocabulary.rows.items()
    }
    assert lacking == {"instruct": [], "clinical": chat, "base": chat}
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


def test_a_model_without_tokenizer_does_not_lend_rows_that_it_never_trained(write):
    parent = llama_3()
    sources = {
        "instruct": write("instruct", parent),
        "clinical": write("clinical", parent, zeros=[EOT]),
        "base": write("base", parent, zeros=[EOT]),
    }
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (sources["base"].path / name).unlink()
    vocabulary = align(sources, base="base", leading="instruct")
    row = parent.token_to_id(EOT)
    for name in sources:
        assert vocabulary.donors(name, row) == (("instruct", row),)


def test_rows_that_an_adapter_trained_are_trained(write, tmp_path):
    parent = llama_3()
    rows = [parent.token_to_id(token) for token in (HEADER, EOT)]
    sources = {"chat": write("chat", parent, zeros=[HEADER, EOT]), "other": write("other", parent)}
    generator = np.random.default_rng(0)
    a_RV = np.zeros((2, parent.get_vocab_size(True)), np.float32)
    a_RV[:, rows] = generator.normal(size=(2, 2))
    tensors = {
        "base_model.model.model.embed_tokens.lora_embedding_A": a_RV,
        "base_model.model.model.embed_tokens.lora_embedding_B": generator.normal(size=(8, 2)).astype(np.float32),
        "base_model.model.lm_head.weight": generator.normal(size=(a_RV.shape[1], 8)).astype(np.float32),
    }
    folder = tmp_path / "adapter"
    folder.mkdir()
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 2, "target_modules": "embed_tokens"}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "modules_to_save": ["lm_head"]}))
    safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors")
    rows = align(sources, base="", leading="chat").rows
    assert [name for name, own in rows.items() if (own < 0).any()] == ["chat"]
    chat = open_model(f"{sources['chat'].path}+{folder}", "config.chat")
    recipe = Recipe(
        "linear",
        (Source("chat"), Source("other")),
        {"weight": Schedule.parse("1", "weight")},
        vocabulary=VocabularyChoice(special_rows=True),
    )
    assert plan_merge(recipe, [chat, sources["other"]]).vocabulary is None
