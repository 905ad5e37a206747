"""Checkpoints with tokenizers, for tests of plans and vocabularies."""

import functools

import pytest
from tokenizer_builders import write_model


@pytest.fixture
def write(tmp_path):
    """`write_model` into the test's own folder."""
    return functools.partial(write_model, tmp_path)
