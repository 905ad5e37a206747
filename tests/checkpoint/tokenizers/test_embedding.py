"""The tensors with one row for each token."""

import dataclasses

import pytest
import support
from tokenizer_builders import llama_3, write_model

from clinmerge_jax.checkpoint.tokenizers.embedding import has_vocabulary_rows, vocabulary_rows
from clinmerge_jax.errors import BadInput


def test_tensors_with_vocabulary_rows():
    names = support.llama_shapes(support.TINY)
    assert [name for name in names if has_vocabulary_rows(name)] == ["model.embed_tokens.weight", "lm_head.weight"]


def test_bad_embeddings_are_refused(tmp_path):
    model = write_model(tmp_path, "a", llama_3())
    head = model.tensors["lm_head.weight"]
    shorter = dataclasses.replace(head, shape=(head.shape[0] - 1, head.shape[1]))
    uneven = dataclasses.replace(model, tensors={**model.tensors, "lm_head.weight": shorter})
    with pytest.raises(
        BadInput, match=r"different numbers of vocabulary rows .*lm_head\.weight \d+, model\.embed_tokens\.weight \d+"
    ):
        vocabulary_rows(uneven)
    without = dataclasses.replace(model, tensors={"lm_head.weight": head})
    with pytest.raises(BadInput, match=r"has no tensor embed_tokens\.weight"):
        vocabulary_rows(without)
