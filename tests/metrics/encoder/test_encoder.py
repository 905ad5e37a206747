"""BERT and RoBERTa beside transformers' torch models on random weights, from the folders that those save."""

import json
import shutil

import encoders
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from clinmerge_jax.errors import BadInput
from clinmerge_jax.metrics.encoder import encoder as encoder_module
from clinmerge_jax.metrics.encoder import load_encoder
from clinmerge_jax.metrics.encoder.config import EncoderConfig

FAMILIES = ("bert", "roberta")


@pytest.fixture(scope="module", params=FAMILIES)
def saved(request, tmp_path_factory):
    """Family, torch model, tokenizer and folder."""
    model, tokenizer = encoders.build(request.param)
    folder = encoders.write(tmp_path_factory.mktemp(request.param) / "model", model, tokenizer)
    return request.param, model, tokenizer, folder


def _torch_states(model, rows):
    """Every layer's states of each row, from one padded batch: a list over rows of [L + 1, T, D]."""
    pad = model.config.pad_token_id
    longest = max(map(len, rows))
    tokens = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    with torch.no_grad():
        states = model(tokens, attention_mask=mask, output_hidden_states=True).hidden_states
    return [np.stack([layer[index, : len(row)].numpy() for layer in states]) for index, row in enumerate(rows)]


def test_every_layer_is_that_of_transformers(saved):
    _, model, _, folder = saved
    for layer in range(4):
        encoder = load_encoder(folder, "config.encoder", layer)
        rows, _ = encoder.tokenize(encoders.TEXTS[:4])  # of one bucket; longer ones follow below
        assert len({len(row) for row in rows}) > 2
        for ours, theirs in zip(encoder.states(rows), _torch_states(model, rows), strict=True):
            np.testing.assert_allclose(ours, theirs[layer], rtol=1e-5, atol=1e-5)


def test_another_shape(tmp_path):
    model, tokenizer = encoders.build(
        "roberta", hidden_size=16, num_attention_heads=2, intermediate_size=8, num_hidden_layers=1
    )
    encoder = load_encoder(encoders.write(tmp_path / "model", model, tokenizer), "config.encoder")
    rows, _ = encoder.tokenize([encoders.TEXTS[2], "a <pad> within"])  # it stands at no position of its own
    assert encoder.layer == 1 and 1 in rows[-1]
    for ours, theirs in zip(encoder.states(rows), _torch_states(model, rows), strict=True):
        np.testing.assert_allclose(ours, theirs[-1], rtol=1e-5, atol=1e-5)


def test_batches_and_padding_leave_no_trace(saved, monkeypatch):
    _, model, _, folder = saved
    encoder = load_encoder(folder, "config.encoder")
    rows, _ = encoder.tokenize(encoders.TEXTS)
    together = encoder.states(rows)
    monkeypatch.setattr(encoder_module, "_BATCH_TOKENS", 1)
    for one, other, theirs in zip(together, encoder.states(rows), _torch_states(model, rows), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=5e-6)
        np.testing.assert_allclose(one, theirs[-1], rtol=1e-5, atol=1e-5)


def test_texts_are_cut_to_the_positions_and_keep_their_last_special_token(saved):
    family, _, tokenizer, folder = saved
    encoder = load_encoder(folder, "config.encoder", 0)
    rows, cut = encoder.tokenize(["fever " * 99, "fever"])
    assert cut == 1 and encoder.config.max_tokens == 64  # RoBERTa's 66 positions begin behind the padding's
    assert len(rows[0]) == 64 and (rows[0][0], rows[0][-1]) == encoder.specials
    assert np.isfinite(encoder.states(rows)[0]).all()
    lead = " " if family == "roberta" else ""
    assert rows[1].tolist() == tokenizer.encode(lead + "fever").ids


def test_heads_old_names_stored_positions_and_half_precision_are_read(tmp_path, saved):
    family, _, _, folder = saved
    plain = load_encoder(folder, "config.encoder")
    copy = shutil.copytree(folder, tmp_path / "copy")
    tensors = safetensors.numpy.load_file(copy / "model.safetensors")
    renamed = {
        f"{family}.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): (
            values.astype(np.float16) if "intermediate" in name else values
        )
        for name, values in tensors.items()
    }
    renamed[f"{family}.embeddings.position_ids"] = np.arange(64)[None]
    renamed["lm_head.bias"] = np.zeros(3, np.float32)
    safetensors.numpy.save_file(renamed, copy / "model.safetensors")
    other = load_encoder(str(copy), "config.encoder")
    for part, leaves in plain.params.items():
        for name, values in leaves.items():
            rounded = np.asarray(values).astype(np.float16 if "intermediate" in name else np.float32)
            np.testing.assert_array_equal(other.params[part][name], rounded.astype(np.float32), err_msg=name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "xlm-roberta"}, "model_type is 'xlm-roberta'; supported encoders are bert, roberta"),
        ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'; only 'gelu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'; only 'absolute'"),
        ({"is_decoder": True}, "is_decoder is True; only False"),
        ({"hidden_size": "24"}, "hidden_size is '24'; give an integer from 1 on"),
        ({"num_attention_heads": 5}, "hidden_size is 24, not a multiple of num_attention_heads"),
        ({"layer_norm_eps": 0}, "layer_norm_eps is 0; give a positive number"),
        ({"pad_token_id": -1}, "pad_token_id is -1; give an integer from 0 on"),
        ({"max_position_embeddings": 2}, "max_position_embeddings is 2, which leaves no room for text"),
    ],
)
def test_another_architecture_is_refused_by_its_field(change, message):
    raw = transformers.BertConfig(hidden_size=24, num_attention_heads=4).to_dict()
    with pytest.raises(BadInput, match=message):
        EncoderConfig.from_json({**raw, **change}, "config.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("encoder.layer.2.output.dense.bias"), "lacks tensor encoder.layer.2.output.dense"),
        (
            lambda tensors: tensors.update({"encoder.layer.3.output.dense.bias": np.zeros(24, np.float32)}),
            "holds tensor encoder.layer.3.output.dense.bias that config.json does not expect",
        ),
        (
            lambda tensors: tensors.update({"encoder.layer.1.output.dense.bias": np.zeros(23, np.float32)}),
            r"has shape \[23\], but config.json requires \[24\]",
        ),
        (lambda tensors: tensors.pop("embeddings.word_embeddings.weight"), "has no tensor embeddings.word_embeddings"),
    ],
)
def test_weights_that_are_not_those_of_the_config_are_refused(tmp_path, saved, change, message):
    copy = shutil.copytree(saved[3], tmp_path / "copy")
    tensors = safetensors.numpy.load_file(copy / "model.safetensors")
    change(tensors)
    safetensors.numpy.save_file(tensors, copy / "model.safetensors")
    with pytest.raises(BadInput, match=message):
        load_encoder(str(copy), "config.encoder")


def test_layers_and_tokenizers_that_are_not_there_are_refused(tmp_path, saved):
    with pytest.raises(BadInput, match=r"config.encoder: layer 4 is requested, but .* has 3 layers"):
        load_encoder(saved[3], "config.encoder", 4)
    copy = shutil.copytree(saved[3], tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "vocab_size": 20}))
    with pytest.raises(BadInput, match="its embedding 20 rows; they belong to different models"):
        load_encoder(str(copy), "config.encoder")
    content = json.loads((copy / "tokenizer.json").read_text())
    (copy / "tokenizer.json").write_text(json.dumps({**content, "post_processor": None}))
    with pytest.raises(BadInput, match="puts 0 special tokens around a text"):
        load_encoder(str(copy), "config.encoder")
