"""The tokenizer of a folder: its tokens, and what is refused."""

import functools
import json

import pytest
import transformers
from tokenizer_builders import LLAMA_3_SPECIALS, llama_2, llama_3, llama_3_core, write_model
from tokenizers import AddedToken

from clinmerge_jax.checkpoint.tokenizer import load_tokenizer, read_vocabulary
from clinmerge_jax.errors import BadInput


@pytest.fixture
def write(tmp_path):
    return functools.partial(write_model, tmp_path)


def test_a_vocabulary_knows_added_and_special_tokens(write):
    parent = llama_3(["<plain>", AddedToken("<special>", special=True)])
    known = read_vocabulary(write("a", parent, extra=4), "config.a")
    assert known.rows == parent.get_vocab_size(True) + 4 and known.ids == parent.get_vocab(True)
    assert list(known.added) == [*LLAMA_3_SPECIALS, "<plain>", "<special>"]
    assert known.special == {*LLAMA_3_SPECIALS, "<special>"}


def test_tokens_that_only_the_settings_list_are_read_as_transformers_reads_them(write):
    parent = llama_2()
    size = parent.get_vocab_size(True)
    settings = {"added_tokens_decoder": {str(size): {"content": "<late>", "special": True, "normalized": False}}}
    model = write("a", parent, extra=1, settings=settings)
    known = read_vocabulary(model, "config.a")
    loaded = transformers.AutoTokenizer.from_pretrained(model.path)
    assert known.ids["<late>"] == size == loaded.convert_tokens_to_ids("<late>") and "<late>" in known.special


def test_an_older_tokenizer_is_converted(write):
    words, merges = llama_3_core(0)
    model = write("a", None, rows=len(words) + 1)
    (model.path / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (model.path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges))
    (model.path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer", "unk_token": "a"}')
    known = read_vocabulary(model, "config.a")
    assert {word: known.ids[word] for word in words} == {word: index for index, word in enumerate(words)}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "tokenizer.json").unlink(), r"^config\.a: .* has no tokenizer\.json; add"),
        (lambda path: (path / "tokenizer.json").write_text("{}"), r"^config\.a: .*tokenizer\.json does not load"),
        (lambda path: (path / "tokenizer.json").write_bytes(b"\xff"), r"^config\.a: .*tokenizer\.json does not load"),
        (
            lambda path: (path / "tokenizer.json").rename(path / "tokenizer.model"),
            r"^config\.a: .* has tokenizer\.model but no tokenizer\.json, .*sentencepiece",
        ),
        (
            lambda path: (path / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"x": 1}}'),
            r"tokenizer_config\.json: added_tokens_decoder is malformed",
        ),
    ],
    ids=["none", "empty", "bytes", "sentencepiece", "settings"],
)
def test_bad_tokenizers_are_refused(write, damage, message):
    model = write("a", llama_3())
    damage(model.path)
    with pytest.raises(BadInput, match=message):
        read_vocabulary(model, "config.a")


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(BadInput, match="config.model: .* has no usable tokenizer"):
        load_tokenizer(tmp_path, "config.model")
