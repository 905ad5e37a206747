"""Tokenizers from GGUF metadata encode as those that the metadata were written from."""

import json

import numpy as np
import pytest
import support
import tokenizer_builders
import transformers
from gguf_files import CONFIG, llama_cpp_tensors, metadata, write
from tokenizer_builders import TEXTS
from tokenizers import Regex, Tokenizer, pre_tokenizers

from clinmerge_jax.checkpoint.tokenizers.tokenizer import load_tokenizer

# As in the tokenizer.json of Llama 3.
LLAMA_3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)

CONTROL, USER_DEFINED, NORMAL, UNKNOWN, BYTE = 3, 4, 1, 2, 6


def _entries(tokenizer, kinds, **changes):
    """Metadata with this tokenizer's tokens and merges, as llama.cpp's conversion writes them."""
    tokens = tokenizer_builders.tokens_by_id(tokenizer)
    model = json.loads(tokenizer.to_str())["model"]
    changes = {"tokenizer__ggml__tokens": tokens, "tokenizer__ggml__token_type": kinds(tokens)} | changes
    changes = {"tokenizer__ggml__merges": [" ".join(merge) for merge in model["merges"]]} | changes
    return metadata({**CONFIG, "vocab_size": len(tokens)}, **changes)


def _converted(tmp_path, entries):
    rows = len(entries["tokenizer.ggml.tokens"])
    tensors = support.llama_tensors({**CONFIG, "vocab_size": rows}, 0, np.float32)
    write(tmp_path / "model.gguf", llama_cpp_tensors(tensors), entries)
    return support.convert(tmp_path / "model.gguf", tmp_path / "out")


def _bpe_kinds(user_defined=()):
    def kinds(tokens):
        return [USER_DEFINED if one in user_defined else CONTROL if one.startswith("<|") else NORMAL for one in tokens]

    return kinds


def test_llama_3s_tokenizer_encodes_as_its_own(tmp_path):
    own = tokenizer_builders.llama_3(added=["<think>"])
    split = pre_tokenizers.Split(Regex(LLAMA_3_SPLIT), behavior="isolated")
    own.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    entries = _entries(
        own,
        _bpe_kinds(["<think>"]),
        tokenizer__ggml__pre="llama-bpe",
        tokenizer__ggml__bos_token_id=own.token_to_id(tokenizer_builders.BOS),
        tokenizer__ggml__eos_token_id=own.token_to_id(tokenizer_builders.EOT),
        tokenizer__ggml__add_bos_token=None,  # llama.cpp's default for this kind is to add it
    )
    folder = _converted(tmp_path, entries)
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = [*TEXTS, "a <think>b</think><|eot_id|> c", "<|begin_of_text|>x"]
    for text in texts:
        assert made.encode(text).ids == own.encode(text).ids, text
        assert made.decode(made.encode(text).ids) == own.decode(own.encode(text).ids)
    assert made.get_vocab() == own.get_vocab()
    assert made.encode("x<think>y", add_special_tokens=False).tokens == ["x", "<think>", "y"]
    loaded = load_tokenizer(folder, "model")
    assert (loaded.bos_token, loaded.eos_token) == (tokenizer_builders.BOS, tokenizer_builders.EOT)
    assert loaded("fever")["input_ids"] == own.encode("fever").ids


def test_digits_stand_alone_in_smollms_tokenizer(tmp_path):
    """As in SmolLM2's own tokenizer.json: Digits(individual_digits) before GPT-2's rule; transformers leaves it out."""
    own = tokenizer_builders.llama_3(specials=("<|a|>", "<|b|>"))
    own.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    plain = tokenizer_builders.llama_3(specials=("<|a|>", "<|b|>"))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    entries = _entries(own, _bpe_kinds(), tokenizer__ggml__pre="smollm", tokenizer__ggml__add_bos_token=False)
    made = Tokenizer.from_file(str(_converted(tmp_path, entries) / "tokenizer.json"))
    texts = [*TEXTS, "a  12", "x 1 234", "½ of 3²"]
    for text in texts:
        assert made.encode(text, add_special_tokens=False).ids == own.encode(text, add_special_tokens=False).ids, text
    split = [[piece for piece, _ in one.pre_tokenizer.pre_tokenize_str("a  12")] for one in (made, plain)]
    assert split[0] == ["a", "ĠĠ", "1", "2"] != split[1]


@pytest.mark.parametrize("with_merges", [True, False])
def test_llama_2s_tokenizer_encodes_as_its_own(tmp_path, with_merges):
    """From its merges where the file has them, else from scores: those that SentencePiece gives, in order of ids."""
    own = tokenizer_builders.llama_2()
    names = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL}

    def kinds(tokens):
        return [names.get(one, BYTE if one.startswith("<0x") else NORMAL) for one in tokens]

    count = own.get_vocab_size()
    entries = _entries(
        own,
        kinds,
        tokenizer__ggml__model="llama",
        tokenizer__ggml__pre=None,
        tokenizer__ggml__scores=[-float(index) for index in range(count)],
        tokenizer__ggml__bos_token_id=own.token_to_id("<s>"),
        tokenizer__ggml__eos_token_id=own.token_to_id("</s>"),
        tokenizer__ggml__unknown_token_id=own.token_to_id("<unk>"),
        tokenizer__ggml__add_bos_token=None,
        **({} if with_merges else {"tokenizer__ggml__merges": None}),
    )
    folder = _converted(tmp_path, entries)
    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in TEXTS:
        ids = made.encode(text, add_special_tokens=False).ids
        assert ids == own.encode(text, add_special_tokens=False).ids, text
        assert made.decode(ids) == text
    assert made.encode("a fever").ids[0] == own.token_to_id("<s>")  # added where the file does not say
    assert load_tokenizer(folder, "model").unk_token == "<unk>"


def test_no_space_is_put_first_where_the_file_says_so(tmp_path):
    own = tokenizer_builders.llama_2()
    entries = _entries(
        own,
        lambda tokens: [UNKNOWN if one == "<unk>" else CONTROL if one in ("<s>", "</s>") else NORMAL for one in tokens],
        tokenizer__ggml__model="llama",
        tokenizer__ggml__add_space_prefix=False,
        tokenizer__ggml__add_bos_token=False,
    )
    made = Tokenizer.from_file(str(_converted(tmp_path, entries) / "tokenizer.json"))
    assert "".join(made.encode("the patient").tokens) == "the▁patient"


def test_template_stops_and_places_without_tokens(tmp_path):
    entries = metadata(tokenizer__ggml__eot_token_id=2, tokenizer__ggml__padding_token_id=1)
    folder = _converted(tmp_path, entries)
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 0, "eos_token_id": [1, 2], "pad_token_id": 1}
    loaded = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    said = loaded.apply_chat_template([{"role": "user", "content": "the"}], tokenize=False)
    assert said == "the<|end|>" and loaded.pad_token == "<|end|>"
    assert loaded(said)["input_ids"][0] == 0 and loaded(said)["input_ids"][-1] == 1
    vocabulary = loaded.get_vocab()
    assert len(vocabulary) == 3 + 256 + 3 and not any(token.startswith("[PAD") for token in vocabulary)


def test_another_models_tokenizer_can_be_taken(tmp_path):
    (tmp_path / "own").mkdir()
    support.write_tokenizer(tmp_path / "own")
    tensors = llama_cpp_tensors(support.llama_tensors(CONFIG, 0, np.float32))
    write(tmp_path / "model.gguf", tensors, metadata(tokenizer__ggml__pre="mars"))
    folder = support.convert(tmp_path / "model.gguf", tmp_path / "out", tokenizer=str(tmp_path / "own"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (tmp_path / "own" / name).read_bytes()
