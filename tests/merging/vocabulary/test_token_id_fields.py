"""The token ids of config.json and generation_config.json follow their tokens."""

import json

from tokenizer_builders import BOS, EOT, LLAMA_3_SPECIALS, llama_3

from clinmerge_jax.merging.vocabulary.alignment import align


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
    written = json.loads(vocabulary.files["generation_config.json"])
    # the tokenizer's own end where the leading model's is gone
    assert written == {"eos_token_id": base.token_to_id(EOT), "temperature": 0.6}
    assert any("pad_token_id" in note and "none" in note for note in vocabulary.notes)


def test_cutting_drops_token_ids_that_it_cuts_off(write):
    gone = llama_3().get_vocab_size(True)
    config = {"eos_token_id": [3, gone], "pad_token_id": gone, "sep_token_id": gone + 1}
    sources = {"a": write("a", llama_3(["<b>"]), **config), "b": write("b", llama_3())}
    vocabulary = align(sources, base="", leading="a", cut_to_common=True)
    updates = {"vocab_size": gone, "eos_token_id": [3], "pad_token_id": None}  # sep_token_id was past the rows before
    assert vocabulary.config_updates == updates
