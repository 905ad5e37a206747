"""The difference of two checkpoints, read in pieces."""

import hashlib

import numpy as np
import pytest
from support import BF16, TINY, llama_tensors, write_llama

from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.errors import BadInput
from clinmerge_jax.merging.inspection import difference as difference_module
from clinmerge_jax.merging.inspection.difference import Difference


def _opened(folder, **dtypes):
    for seed, (role, dtype) in enumerate(dtypes.items()):
        write_llama(folder / role, seed, dtype, shards=2)
    return [open_checkpoint(str(folder / role), f"config.{role}") for role in dtypes]


@pytest.mark.parametrize("entries", [1 << 24, 20])  # in one piece, in pieces of two rows and fewer
def test_every_tensor_is_read_and_every_file_digested(tmp_path, monkeypatch, entries):
    monkeypatch.setattr(difference_module, "_PIECE_ENTRIES", entries)
    model, base = _opened(tmp_path, model=np.float32, base=BF16)
    one, two = llama_tensors(TINY, 0, np.float32), llama_tensors(TINY, 1, BF16)
    with Difference(model, base) as difference:
        for name in one:
            expected = one[name] - two[name].astype(np.float32)
            found = np.concatenate(list(difference.pieces(name)))
            np.testing.assert_array_equal(found.reshape(expected.shape), expected)
            assert difference.square(name) == pytest.approx(np.square(expected.astype(np.float64)).sum(), rel=1e-12)
            if expected.ndim == 2:
                np.testing.assert_array_equal(difference.matrix(name), expected)
    files = [*model.files, *base.files]
    assert difference.sha256() == {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_values_that_are_not_finite_are_refused_by_name(tmp_path):
    tensors = llama_tensors(TINY, 0, np.float32)
    tensors["model.norm.weight"][0] = np.inf
    write_llama(tmp_path / "model", dtype=np.float32, tensors=tensors)
    write_llama(tmp_path / "base", dtype=np.float32, tensors=tensors)
    model, base = (open_checkpoint(str(tmp_path / role), f"config.{role}") for role in ("model", "base"))
    with (
        Difference(model, base) as difference,
        pytest.raises(BadInput, match="^config.model: tensor model.norm.weight"),
    ):
        difference.square("model.norm.weight")
