"""The figures that two or three models are compared by, against plain numpy."""

import hashlib
import json
import math

import numpy as np
import pytest
from families import BASE, CLINICAL, INSTRUCT, cosine, inspected, opened, reference
from support import BF16, write_llama

from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.errors import BadInput
from clinmerge_jax.merging.inspection import inspection
from clinmerge_jax.merging.inspection.inspection import common_tensors, inspect_tensors
from clinmerge_jax.merging.inspection.measures import FROM_BASE, PARENTS


@pytest.mark.parametrize("dtype", [np.float32, BF16, np.float16])
@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("top", [0.001, 5.0, 100.0])
def test_every_figure_of_every_tensor_is_numpys(tmp_path, dtype, with_base, top):
    kept = {"clinical": CLINICAL, "instruct": INSTRUCT} | ({"base": BASE} if with_base else {})
    models = opened(tmp_path, dtype, **kept)
    kept = {role: {n: v.astype(dtype).astype(np.float64) for n, v in tensors.items()} for role, tensors in kept.items()}
    for one in inspected(models, top):
        values = {role: tensors[one.name] for role, tensors in kept.items()}
        assert list(one.measures.pairs) == [PARENTS, *FROM_BASE][: 3 if with_base else 1]
        for (b, a), measures in one.measures.pairs.items():
            found = (measures.relative_distance, measures.cosine, measures.top_share)
            assert found == pytest.approx(reference(values[b], values[a], top), rel=1e-6, abs=1e-12)
            assert measures.changed == np.count_nonzero(values[b] - values[a])
            assert math.cos(math.radians(measures.degrees)) == pytest.approx(measures.cosine, abs=1e-12)
            assert measures.z == pytest.approx(measures.cosine * math.sqrt(values[a].size))
        x, y = values["clinical"], values["instruct"]
        if with_base:
            x, y = x - values["base"], y - values["base"]
            assert one.measures.change_cosine == pytest.approx(cosine(x, y), abs=1e-12)
            assert one.measures.carried == pytest.approx(float((x * y).sum() / (y * y).sum()), abs=1e-12)
        else:
            assert one.measures.change_cosine is None
        both = (x != 0) & (y != 0)
        assert one.measures.signs_compared == both.sum()
        assert one.measures.sign_agreement == pytest.approx(float(((x > 0) == (y > 0))[both].mean()))


def test_no_figure_depends_on_pieces_and_memory(tmp_path, monkeypatch):
    models = opened(tmp_path, clinical=CLINICAL, instruct=INSTRUCT, base=BASE)
    monkeypatch.setattr(inspection, "BLOCK", 64)
    expected = inspected(models)
    assert inspected(models, piece_bytes=1, held_bytes=0) == expected
    assert inspected(models, piece_bytes=1000) == expected
    monkeypatch.undo()
    for one, other in zip(inspected(models), expected):
        found, wanted = one.measures.pairs[PARENTS], other.measures.pairs[PARENTS]
        assert found.top_share == pytest.approx(wanted.top_share, rel=1e-12)


def test_of_equal_changes_only_as_many_as_asked_count(tmp_path):
    name = "model.layers.0.self_attn.q_proj.weight"
    clinical = {**BASE, name: BASE[name] + np.float32(0)}
    clinical[name] = BASE[name].copy()
    clinical[name].ravel()[:500] = np.nextafter(clinical[name].ravel()[:500], np.float32(np.inf))
    other = {key: np.where(np.arange(v.size).reshape(v.shape) % 2, v, 0).astype(np.float32) for key, v in BASE.items()}
    flat = {key: np.zeros_like(values) for key, values in BASE.items()}
    steps = {key: np.where(np.arange(v.size).reshape(v.shape) % 4, 1, 2).astype(np.float32) for key, v in BASE.items()}
    (one,) = [x for x in inspected(opened(tmp_path / "a", clinical=steps, instruct=flat), 50.0) if x.name == name]
    size = BASE[name].size  # a quarter of the entries changed by 2, the others by 1
    assert one.measures.pairs[PARENTS].top_share == pytest.approx((4 + 1) / (4 + 3), rel=1e-12)
    assert math.isinf(one.measures.pairs[PARENTS].relative_distance)
    assert one.to_json()["pairs"]["clinical vs instruct"]["relative_distance"] is None
    (same,) = [x for x in inspected(opened(tmp_path / "b", clinical=other, instruct=other)) if x.name == name]
    pair = same.measures.pairs[PARENTS]
    assert (pair.relative_distance, pair.changed, pair.top_share) == (0.0, 0, None)
    assert pair.degrees == 0.0 and pair.totals.collinear
    assert same.measures.signs_compared == size // 2 and same.measures.sign_agreement == 1.0
    (tiny,) = [x for x in inspected(opened(tmp_path / "c", clinical=clinical, instruct=BASE)) if x.name == name]
    assert tiny.measures.pairs[PARENTS].changed == 500 and tiny.measures.pairs[PARENTS].totals.collinear
    json.dumps([x.to_json() for x in (one, same, tiny)], allow_nan=False)


def test_the_files_are_digested_in_passing(tmp_path):
    write_llama(tmp_path / "clinical", 1, shards=3)
    write_llama(tmp_path / "instruct", 2)
    models = {role: open_checkpoint(str(tmp_path / role), role) for role in ("clinical", "instruct")}
    for names in (common_tensors(models)[0], common_tensors(models)[0][::-3]):
        _, digests = inspect_tensors(models, names, 1.0)
        files = [path for checkpoint in models.values() for path in checkpoint.files]
        assert digests == {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_only_what_all_models_share_is_compared(tmp_path):
    write_llama(tmp_path / "clinical", 0, vocab_size=18)
    write_llama(tmp_path / "instruct", 1, num_hidden_layers=3, tie_word_embeddings=True)
    models = {role: open_checkpoint(str(tmp_path / role), f"config.{role}") for role in ("clinical", "instruct")}
    names, others = common_tensors(models)
    assert len(names) == 19 and not any("embed" in name for name in names)
    assert "model.embed_tokens.weight: [18, 8] in clinical, [16, 8] in instruct" in others
    assert "lm_head.weight: only in clinical" in others
    assert sum("layers.2" in line and line.endswith("only in instruct") for line in others) == 9


def test_models_that_share_nothing_are_refused(tmp_path):
    write_llama(tmp_path / "clinical", 0)
    write_llama(tmp_path / "instruct", 1, hidden_size=16)
    models = {role: open_checkpoint(str(tmp_path / role), f"config.{role}") for role in ("clinical", "instruct")}
    with pytest.raises(BadInput, match="^config.clinical and config.instruct: have no layer matrix"):
        common_tensors(models)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_by_name(tmp_path, value):
    name = "model.layers.1.mlp.up_proj.weight"
    damaged = {**INSTRUCT, name: INSTRUCT[name].copy()}
    damaged[name][3, 4] = value
    models = opened(tmp_path, clinical=CLINICAL, instruct=damaged)
    with pytest.raises(BadInput, match=f"instruct/model.safetensors: tensor {name} holds NaN or infinity"):
        inspected(models)
