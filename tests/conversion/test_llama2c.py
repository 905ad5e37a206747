"""llama2.c checkpoints on small ones that the tests write themselves."""

import json
import struct

import numpy as np
import pytest
import support
from safetensors import safe_open
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from clinmerge_jax.conversion import llama2c
from clinmerge_jax.errors import BadInput

DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, SEQ = 16, 20, 2, 4, 2, 6
HEAD = DIM // HEADS
KV_DIM = KV_HEADS * HEAD

# In the order of their scores, as a llama2.c tokenizer has them: merged pieces, then characters.
TEXT_PIECES = [
    " t",
    "he",
    " the",
    " a",
    "aa",
    "at",
    " at",
    "tt",
    "hea",
    "aaa",
    " the h",
    " ",
    "a",
    "e",
    "h",
    "t",
    ".",
    "\u00e9",
]
TOKENS = ["<unk>", "\n<s>\n", "\n</s>\n"] + [f"<0x{b:02X}>" for b in range(256)] + TEXT_PIECES
VOCAB = len(TOKENS)
SENTENCES = [
    "the at heat.",
    "",
    " ",
    "  the",
    "aaaaaaa aaaa",
    "hehe the heat ",
    "caf\u00e9 th\u00e9",
    "line\nline",
    "\u65e5\u672c \U0001f600",
    "<0x41> the",
    "tttt that teeth",
]


def token_scores():
    return [0.0] * 259 + [-float(rank) for rank in range(len(TEXT_PIECES))]


def write_tokenizer(path, tokens=tuple(TOKENS)):
    scores = token_scores()
    encoded = [token.encode("utf-8") for token in tokens]
    with path.open("wb") as file:
        file.write(struct.pack("<i", max(map(len, encoded))))
        for score, piece in zip(scores, encoded):
            file.write(struct.pack("<fi", score, len(piece)) + piece)
    return path


def write_checkpoint(path, shared=True):
    """Writes a random checkpoint; returns its stacked tensors by their llama2.c names."""
    rng = np.random.default_rng(0)
    shapes = {
        "token_embedding": (VOCAB, DIM),
        "rms_att": (LAYERS, DIM),
        "wq": (LAYERS, DIM, DIM),
        "wk": (LAYERS, KV_DIM, DIM),
        "wv": (LAYERS, KV_DIM, DIM),
        "wo": (LAYERS, DIM, DIM),
        "rms_ffn": (LAYERS, DIM),
        "w1": (LAYERS, HIDDEN, DIM),
        "w2": (LAYERS, DIM, HIDDEN),
        "w3": (LAYERS, HIDDEN, DIM),
        "rms_final": (DIM,),
        "rope_cos": (SEQ, HEAD // 2),
        "rope_sin": (SEQ, HEAD // 2),
    }
    if not shared:
        shapes["wcls"] = (VOCAB, DIM)
    weights = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    vocab = VOCAB if shared else -VOCAB
    with path.open("wb") as file:
        file.write(struct.pack("<7i", DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, vocab, SEQ))
        for values in weights.values():
            file.write(struct.pack(f"<{values.size}f", *values.ravel().tolist()))
    return weights


def assert_refused(checkpoint, tokenizer, output, *words):
    """One line, and no output folder, whole or partial."""
    with pytest.raises(BadInput) as refusal:
        support.convert(checkpoint, output, tokenizer=str(tokenizer))
    said = str(refusal.value)
    assert "\n" not in said and "; " in said
    for word in words:
        assert word in said
    assert not output.exists() and not output.with_name(f".{output.name}.partial").exists()


def rotate(vectors_SC, pairs):
    """RoPE of one head [S, C] that turns dimensions (x, y) = pairs[i] by s * 10000^(-2i/C)."""
    rotated = np.empty_like(vectors_SC, np.float64)
    for i, (x, y) in enumerate(pairs):
        angle = np.arange(len(vectors_SC)) * 10000.0 ** (-2 * i / (2 * len(pairs)))
        cos, sin = np.cos(angle), np.sin(angle)
        rotated[:, x] = vectors_SC[:, x] * cos - vectors_SC[:, y] * sin
        rotated[:, y] = vectors_SC[:, x] * sin + vectors_SC[:, y] * cos
    return rotated


def attention_scores(wq_DD, wk_KD, x_SD, pairs):
    """Scores [H, S, S] before the softmax, query head h reading key head h // (H / K)."""
    scores = []
    for head in range(HEADS):
        kv_head = head // (HEADS // KV_HEADS)
        q_SC = x_SD @ wq_DD[head * HEAD : (head + 1) * HEAD].T.astype(np.float64)
        k_SC = x_SD @ wk_KD[kv_head * HEAD : (kv_head + 1) * HEAD].T.astype(np.float64)
        scores.append(rotate(q_SC, pairs) @ rotate(k_SC, pairs).T)
    return np.stack(scores)


def llama2c_encode(text):
    """llama2.c's rule: characters or bytes, then the best-scored pair until none is left."""
    ids = {piece: token for token, piece in enumerate(TOKENS)}
    scores = token_scores()
    tokens = []
    for character in (" " + text) if text else "":
        if character in ids:
            tokens.append(ids[character])
        else:
            tokens.extend(byte + 3 for byte in character.encode("utf-8"))
    while True:
        merges = [
            (scores[ids[a + b]], -i)
            for i, (a, b) in enumerate((TOKENS[x], TOKENS[y]) for x, y in zip(tokens, tokens[1:]))
            if a + b in ids
        ]
        if not merges:
            return [1] + tokens
        at = -max(merges)[1]
        tokens[at : at + 2] = [ids[TOKENS[tokens[at]] + TOKENS[tokens[at + 1]]]]


@pytest.fixture(scope="module", params=[True, False], ids=["shared", "unshared"])
def converted(request, tmp_path_factory):
    """(source tensors, output folder, shared) of one conversion."""
    folder = tmp_path_factory.mktemp("llama2c")
    weights = write_checkpoint(folder / "model.bin", shared=request.param)
    tokenizer = write_tokenizer(folder / "tok.bin")
    output = support.convert(folder / "model.bin", folder / "out", tokenizer=str(tokenizer))
    return weights, output, request.param


def test_every_tensor_without_rope_is_copied_exactly(converted):
    weights, output, shared = converted
    expected = {
        "model.embed_tokens.weight": weights["token_embedding"],
        "model.norm.weight": weights["rms_final"],
    }
    if not shared:
        expected["lm_head.weight"] = weights["wcls"]
    for layer in range(LAYERS):
        for name, source in (
            ("input_layernorm", "rms_att"),
            ("self_attn.v_proj", "wv"),
            ("self_attn.o_proj", "wo"),
            ("post_attention_layernorm", "rms_ffn"),
            ("mlp.gate_proj", "w1"),
            ("mlp.down_proj", "w2"),
            ("mlp.up_proj", "w3"),
        ):
            expected[f"model.layers.{layer}.{name}.weight"] = weights[source][layer]
    actual = load_file(output / "model.safetensors")
    rotated = {f"model.layers.{layer}.self_attn.{name}_proj.weight" for layer in range(LAYERS) for name in "qk"}
    assert set(actual) == set(expected) | rotated
    assert all(tensor.dtype == np.float32 for tensor in actual.values())
    for name, tensor in expected.items():
        np.testing.assert_array_equal(actual[name], tensor, err_msg=name)


def test_query_and_key_rows_are_permuted_within_their_heads(converted):
    weights, output, _ = converted
    actual = load_file(output / "model.safetensors")
    for layer in range(LAYERS):
        for name, source in (("q", "wq"), ("k", "wk")):
            tensor = actual[f"model.layers.{layer}.self_attn.{name}_proj.weight"]
            assert tensor.shape == weights[source][layer].shape
            for row, values in enumerate(tensor):
                head, place = divmod(row, HEAD)
                half, pair = divmod(place, HEAD // 2)
                np.testing.assert_array_equal(values, weights[source][layer][head * HEAD + 2 * pair + half])


def test_half_split_scores_equal_interleaved_scores(converted):
    weights, output, _ = converted
    actual = load_file(output / "model.safetensors")
    x_SD = np.random.default_rng(1).standard_normal((SEQ, DIM))
    interleaved = [(2 * i, 2 * i + 1) for i in range(HEAD // 2)]
    half_split = [(i, i + HEAD // 2) for i in range(HEAD // 2)]
    for layer in range(LAYERS):
        expected = attention_scores(weights["wq"][layer], weights["wk"][layer], x_SD, interleaved)
        prefix = f"model.layers.{layer}.self_attn."
        scores = attention_scores(actual[prefix + "q_proj.weight"], actual[prefix + "k_proj.weight"], x_SD, half_split)
        np.testing.assert_allclose(scores, expected, rtol=1e-12, atol=1e-12)
        unconverted = attention_scores(weights["wq"][layer], weights["wk"][layer], x_SD, half_split)
        assert np.abs(unconverted - expected).max() > 0.1


def test_configs_follow_the_header(converted):
    _, output, shared = converted
    config = json.loads((output / "config.json").read_text())
    expected = {
        "model_type": "llama",
        "hidden_size": DIM,
        "intermediate_size": HIDDEN,
        "head_dim": HEAD,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "vocab_size": VOCAB,
        "max_position_embeddings": SEQ,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": shared,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
        "hidden_act": "silu",
    }
    assert {name: config[name] for name in expected} == expected
    generation = json.loads((output / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": [1, 2]}
    with safe_open(output / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("text", SENTENCES)
def test_tokenizer_encodes_as_llama2c_and_decodes_back(converted, text):
    tokenizer = Tokenizer.from_file(str(converted[1] / "tokenizer.json"))
    ids = tokenizer.encode(text).ids
    assert ids == llama2c_encode(text)
    assert tokenizer.decode(ids) == text


def test_special_tokens_have_their_names_and_ids(converted):
    tokenizer = Tokenizer.from_file(str(converted[1] / "tokenizer.json"))
    assert [tokenizer.id_to_token(i) for i in (0, 1, 2, 3)] == ["<unk>", "<s>", "</s>", "<0x00>"]
    assert tokenizer.encode("</s>", add_special_tokens=False).ids == [2]
    assert tokenizer.get_vocab_size() == VOCAB


@pytest.mark.parametrize("change, word", [(-1, "truncated"), (-4096, "truncated"), (4, "too long")])
def test_checkpoint_of_the_wrong_size_is_refused(tmp_path, change, word):
    write_checkpoint(tmp_path / "whole.bin")
    raw = (tmp_path / "whole.bin").read_bytes()
    checkpoint = tmp_path / "model.bin"
    checkpoint.write_bytes(raw[:change] if change < 0 else raw + bytes(change))
    tokenizer = write_tokenizer(tmp_path / "tok.bin")
    assert_refused(checkpoint, tokenizer, tmp_path / "out", "model.bin", word, str(len(raw)), str(len(raw) + change))


@pytest.mark.parametrize(
    "header, word",
    [
        (b"\x01\x00", "header"),
        (struct.pack("<7i", 0x616B3432, 1, DIM, HIDDEN, LAYERS, HEADS, KV_HEADS), "--version 0"),
        (struct.pack("<7i", DIM, HIDDEN, 0, HEADS, KV_HEADS, VOCAB, SEQ), "n_layers"),
        (struct.pack("<7i", DIM, HIDDEN, LAYERS, 3, 3, VOCAB, SEQ), "heads"),
        (struct.pack("<7i", DIM, HIDDEN, LAYERS, HEADS, 3, VOCAB, SEQ), "key/value"),
    ],
)
def test_invalid_headers_are_refused_by_name(tmp_path, header, word):
    (tmp_path / "model.bin").write_bytes(header)
    with pytest.raises(BadInput, match=word):
        llama2c.read_header(tmp_path / "model.bin")


def test_truncated_tokenizer_is_refused(tmp_path):
    write_checkpoint(tmp_path / "model.bin")
    tokenizer = write_tokenizer(tmp_path / "tok.bin")
    tokenizer.write_bytes(tokenizer.read_bytes()[:-1])
    assert_refused(tmp_path / "model.bin", tokenizer, tmp_path / "out", "tok.bin", "truncated")


def test_a_checkpoint_without_its_tokenizer_is_refused(tmp_path):
    write_checkpoint(tmp_path / "model.bin")
    assert_refused(
        tmp_path / "model.bin", "", tmp_path / "out", "model.bin is a file but not a GGUF", "--config.tokenizer"
    )


@pytest.mark.parametrize(
    "tokens, word",
    [
        (TOKENS[:-1], "vocabulary"),
        (TOKENS[:-1] + ["aa"], "repeats"),
        (["<pad>"] + TOKENS[1:], "<unk>"),
        (TOKENS[:5] + ["<0x03>"] + TOKENS[6:], "<0x02>"),
    ],
)
def test_invalid_tokenizers_are_refused_by_name(tmp_path, tokens, word):
    with pytest.raises(BadInput, match=word):
        llama2c.read_tokenizer(write_tokenizer(tmp_path / "tok.bin", tokens), VOCAB)
