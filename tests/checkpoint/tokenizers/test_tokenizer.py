"""The tokenizer of a folder: its tokens, and what is refused."""

import dataclasses
import functools
import json

import pytest
import transformers
from tokenizer_builders import LLAMA_3_SPECIALS, llama_2, llama_3, llama_3_core, write_model
from tokenizers import AddedToken

from clinmerge_jax.checkpoint.tokenizers.tokenizer import load_tokenizer, read_again, read_vocabulary
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


@pytest.mark.parametrize(
    "files",
    [
        {"added_tokens.json": {"[PAD]": 400}},
        {"added_tokens.json": {"<b>": 401, "[PAD]": 400}, "special_tokens_map.json": {"pad_token": "[PAD]"}},
        {
            "added_tokens.json": {"</s>": 2, "[PAD]": 400},
            "special_tokens_map.json": {"pad_token": {"content": "[PAD]"}},
        },
        {"added_tokens.json": {"<x>": 400}, "tokenizer_config.json": {"additional_special_tokens": ["<x>"]}},
        {"added_tokens.json": {"[PAD]": 401}, "tokenizer_config.json": {"added_tokens_decoder": {}}},
        {
            "added_tokens.json": {"[PAD]": 401, "<late>": 400},
            "tokenizer_config.json": {"added_tokens_decoder": {"400": {"content": "<late>"}}},
        },
    ],
    ids=["plain", "order", "known", "additional", "settings first", "settings list others"],
)
def test_tokens_that_only_added_tokens_lists_are_read_as_transformers_reads_them(write, files):
    model = write("a", llama_2(), extra=2)
    for name, content in files.items():
        content = {"tokenizer_class": "PreTrainedTokenizerFast", **content} if "config" in name else content
        (model.path / name).write_text(json.dumps(content))
    known = read_vocabulary(model, "config.a")
    loaded = transformers.AutoTokenizer.from_pretrained(model.path)
    assert known.ids == loaded.get_vocab()
    assert {token: str(one) for token, one in known.added.items()} == {
        one.content: str(one) for one in loaded.added_tokens_decoder.values()
    }
    assert known.special == {one.content for one in loaded.added_tokens_decoder.values() if one.special}


def test_a_tokenizer_that_another_model_has_too_is_not_parsed_again(write):
    first, same, other, empty = (write(name, llama_2(), extra=2) for name in "abcd")
    known = read_vocabulary(first, "config.a")
    again = read_again(known, same)
    assert again.backend is known.backend and again.path == same.path and again.label == "config.b"
    (other.path / "added_tokens.json").write_text('{"[PAD]": 400}')
    assert read_again(known, other) is None
    (empty.path / "tokenizer.json").write_bytes(b"")
    assert read_again(dataclasses.replace(known, content=b""), empty) is None  # nor is a converted one an empty file


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
        (lambda path: (path / "added_tokens.json").write_text("[1]"), r"added_tokens\.json: does not map tokens"),
        (
            lambda path: (path / "added_tokens.json").write_text('{"<a>": "x"}'),
            r"added_tokens\.json: does not map tokens",
        ),
    ],
    ids=["none", "empty", "bytes", "sentencepiece", "settings", "added list", "added text"],
)
def test_bad_tokenizers_are_refused(write, damage, message):
    model = write("a", llama_3())
    damage(model.path)
    with pytest.raises(BadInput, match=message):
        read_vocabulary(model, "config.a")


def test_a_folder_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(BadInput, match="config.model: .* has no usable tokenizer"):
        load_tokenizer(tmp_path, "config.model")
