"""Evaluators of several models: which of them share a tokenizer."""

import shutil

import pytest
from ml_collections import ConfigDict

from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.evaluation.answering import make_evaluators
from clinmerge_jax.evaluation.systems import System

_CONFIG = {
    "dtype": "", "slots": 4, "int8_weights": False, "int8_cache": False, "attention": "auto", "length": 0,
    "too_long": "refuse", "max_new_tokens": 0, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0,
    "mesh": {"data": 1, "fsdp": 1, "tensor": 1},
}  # fmt: skip


@pytest.fixture
def copies(tmp_path):
    source = open_checkpoint("miniature:base", "x").path
    for name in "ab":
        shutil.copytree(source, tmp_path / name)
    return tmp_path


def _tokenizers(folder):
    systems = [System(name, 0, name, checkpoint=open_checkpoint(str(folder / name), "x")) for name in "ab"]
    made = make_evaluators([*systems, System("told", 0, "told")], ConfigDict(_CONFIG))
    assert list(made) == systems  # stored answers need none
    return [made[system].tokenizer for system in systems]


def test_models_with_the_same_tokenizer_files_share_one(copies):
    (copies / "b" / "README.md").write_text("another card")
    a, b = _tokenizers(copies)
    assert a is b


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_models_whose_tokenizer_files_differ_have_their_own(copies, file):
    path = copies / "b" / file
    path.write_text(path.read_text() + "\n")
    a, b = _tokenizers(copies)
    assert a is not b
