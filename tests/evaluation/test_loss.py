"""Held-out loss of documents of many lengths."""

import jax
import numpy as np
import pytest
from support import tiny_config, write_llama

from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.parameters.params import load_params
from clinmerge_jax.data.documents import Encoded
from clinmerge_jax.evaluation import loss
from clinmerge_jax.llama.config import RopeConfig
from clinmerge_jax.llama.model import forward
from clinmerge_jax.llama.parameters import init_params
from clinmerge_jax.parallel.layout import Layout, one_device
from clinmerge_jax.parallel.mesh import MeshShape, build_mesh

CONFIG = tiny_config()


def _documents(count):
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 150, count)
    return [
        Encoded(rng.integers(0, 32, n).astype(np.int32), np.concatenate([[False], rng.random(n - 1) < 0.7]))
        for n in lengths
    ]


@pytest.mark.slow
def test_batches_and_padding_do_not_change_a_documents_loss():
    params = init_params(CONFIG, jax.random.key(0))
    documents = _documents(40)
    finished = []
    totals = loss.document_losses(params, one_device(CONFIG), documents, finished.append)
    assert sum(finished) == 40
    one_row = jax.jit(forward, static_argnames="config")
    for document, total in zip(documents, totals):
        tokens = np.pad(document.tokens, (0, 150 - len(document.tokens)))
        logits = np.asarray(one_row(params, tokens[None], config=CONFIG)[0], np.float64)[: len(document.tokens)]
        log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        scored = np.flatnonzero(document.targets)
        expected = -log_probabilities[scored - 1, document.tokens[scored]].sum()
        assert total == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.slow
def test_padding_does_not_stretch_dynamic_rope():
    config = tiny_config(max_position_embeddings=100, rope=RopeConfig("dynamic", 10000.0, 8.0), initializer_range=0.5)
    params = init_params(config, jax.random.key(0))
    tokens = np.random.default_rng(0).integers(0, 32, 100).astype(np.int32)
    (total,) = loss.document_losses(params, one_device(config), [Encoded(tokens, np.arange(100) > 0)])
    log_probabilities = jax.nn.log_softmax(forward(params, tokens[None], config)[0])
    expected = -np.asarray(log_probabilities)[np.arange(99), tokens[1:]].sum()
    assert total == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(2, 2, 2), (8, 1, 1)], ids=str)
def test_a_mesh_does_not_change_a_documents_loss(shape, tmp_path, monkeypatch, figures):
    monkeypatch.setattr(loss, "_MAX_ROWS", 3)  # no multiple of the parts that either mesh cuts a batch into
    folder = write_llama(tmp_path / "model", dtype=np.float32, vocab_size=51, max_position_embeddings=256)
    checkpoint = open_checkpoint(str(folder), "test")
    documents, _ = loss.truncate(_documents(20), 60)
    config, params = load_params(checkpoint)
    expected = loss.document_losses(params, one_device(config), documents)
    layout = Layout(build_mesh(MeshShape(*shape)), config)
    finished = []
    losses = loss.document_losses(load_params(checkpoint, mesh=layout.mesh)[1], layout, documents, finished.append)
    assert sum(finished) == 20 and (expected > 1).all()
    figures.append(
        f"losses on {' x '.join(map(str, shape))}: largest relative difference to one device"
        f" {np.abs(losses / expected - 1).max():.2g}"
    )
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


def test_long_documents_are_cut_and_counted():
    cut, count = loss.truncate(_documents(40), 100)
    assert max(len(document.tokens) for document in cut) == 100
    assert count == sum(len(document.tokens) > 100 for document in _documents(40)) > 0
