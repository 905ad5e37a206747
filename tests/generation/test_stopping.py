"""Stop ids from where checkpoints have them; texts that end an answer."""

import json

import pytest
from support import write_llama, write_tokenizer

from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.tokenizers.tokenizer import load_tokenizer
from clinmerge_jax.errors import BadInput
from clinmerge_jax.generation.stopping import cut, stop_ids, until


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        (1, None, (1,)),
        (1, {}, (1,)),
        (1, {"eos_token_id": 5}, (5,)),
        ([1, 2], {"eos_token_id": [5, 6]}, (5, 6)),
        ([1, 2], None, (1, 2)),
        (None, None, ()),
    ],
)
def test_stop_ids_are_the_generation_configs_or_the_configs(tmp_path, config, generation, expected):
    write_llama(tmp_path / "m", eos_token_id=config)
    if generation is not None:
        (tmp_path / "m" / "generation_config.json").write_text(json.dumps(generation))
    assert stop_ids(open_checkpoint(str(tmp_path / "m"), "x")) == expected


def test_ids_that_are_none_are_refused(tmp_path):
    write_llama(tmp_path / "m", eos_token_id="</s>")
    with pytest.raises(BadInput, match="config.json: eos_token_id is '</s>'"):
        stop_ids(open_checkpoint(str(tmp_path / "m"), "x"))


def test_an_answer_ends_before_the_first_of_the_texts():
    assert cut("one two three", ("three", "two")) == ("one ", True)
    assert cut("one two three", ("four",)) == ("one two three", False)
    assert cut("one", ()) == ("one", False)


def test_texts_are_looked_for_in_what_the_tokens_say(tmp_path):
    write_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path, "x")
    assert until((), tokenizer) is None
    watch = until(("has a",), tokenizer)
    assert not watch([3, 4, 5]) and watch([3, 4, 5, 6, 7])
