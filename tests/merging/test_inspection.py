"""The figures that two or three models are compared by, against plain numpy; and the verdict on their lineage."""

import hashlib
import json
import math

import numpy as np
import pytest
from support import BF16, TINY, llama_tensors, write_llama

from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.errors import BadInput
from clinmerge_jax.merging import inspection
from clinmerge_jax.merging.inspection import (
    FROM_BASE,
    PARENTS,
    advice,
    combine,
    common_tensors,
    group,
    in_display_order,
    inspect_tensors,
    lineage,
    normal_top_share,
)

WIDE = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": 40}
CONFIG = {**TINY, **WIDE}


def changed(tensors, seed, scale):
    """The tensors with a random change of each entry."""
    noise = llama_tensors(CONFIG, seed, np.float32)
    return {name: (values + np.float32(scale) * noise[name]).astype(np.float32) for name, values in tensors.items()}


def opened(folder, dtype=np.float32, **models):
    """Checkpoints by role with these tensors."""
    for role, tensors in models.items():
        tensors = {name: values.astype(dtype) for name, values in tensors.items()}
        write_llama(folder / role, dtype=dtype, tensors=tensors, **WIDE)
    return {role: open_checkpoint(str(folder / role), f"config.{role}") for role in models}


def inspected(models, top=5.0, **sizes):
    """The figures of all common tensors."""
    return inspect_tensors(models, common_tensors(models)[0], top, **sizes)[0]


BASE = llama_tensors(CONFIG, 0, np.float32)
INSTRUCT = changed(BASE, 1, 0.2)
CLINICAL = changed(BASE, 2, 0.3)
UNRELATED = llama_tensors(CONFIG, 9, np.float32)


def cosine(x, y):
    return float((x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum()))


def reference(one, other, top):
    """Relative distance of `one` from `other`, cosine, and the share of the top entries, in float64."""
    one, other = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    squares = np.sort((one - other) ** 2)[::-1]
    k = max(1, round(one.size * top / 100))
    distance = math.sqrt(squares.sum() / (other * other).sum())
    return distance, cosine(one, other), float(squares[:k].sum() / squares.sum())


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


def test_groups_are_the_tensors_laid_end_to_end(tmp_path):
    inspections = inspected(opened(tmp_path, clinical=CLINICAL, instruct=INSTRUCT, base=BASE))
    by_module = group(in_display_order(inspections), lambda one: one.module)
    layers = ["q", "k", "v", "o", "gate", "up", "down", "norms"]
    assert list(by_module) == [*layers, "embed_tokens", "norm", "lm_head"]
    names = [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(2)]
    x, y, o = (np.concatenate([t[n].ravel() for n in names]).astype(np.float64) for t in (CLINICAL, INSTRUCT, BASE))
    found = by_module["q"]
    assert found.tensors == 2 and found.entries == x.size
    pair = found.pairs[PARENTS]
    assert (pair.relative_distance, pair.cosine) == pytest.approx(reference(x, y, 5.0)[:2])
    assert found.change_cosine == pytest.approx(cosine(x - o, y - o))
    tops = [np.sort(((CLINICAL[n] - INSTRUCT[n]).astype(np.float64) ** 2).ravel())[::-1] for n in names]
    held = sum(float(squares[: round(squares.size * 0.05)].sum()) for squares in tops)
    assert pair.top_share == pytest.approx(held / sum(float(squares.sum()) for squares in tops), rel=1e-6)
    assert set(group(inspections, lambda one: one.layer)) == {None, 0, 1}
    assert combine(by_module.values()).entries == sum(values.size for values in BASE.values())


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


def test_a_change_that_did_not_happen_has_no_direction(tmp_path):
    inspections = inspected(opened(tmp_path, clinical=CLINICAL, instruct=BASE, base=BASE))
    for one in inspections:
        assert one.measures.change_cosine is None and one.measures.sign_agreement is None
    found = lineage(inspections)
    assert "has not changed from the base" in found.text()
    assert advice(found, combine(one.measures for one in inspections), 5.0)


def test_the_files_are_digested_in_passing(tmp_path):
    write_llama(tmp_path / "clinical", 1, shards=3)
    write_llama(tmp_path / "instruct", 2)
    models = {role: open_checkpoint(str(tmp_path / role), role) for role in ("clinical", "instruct")}
    for names in (common_tensors(models)[0], common_tensors(models)[0][::-3]):
        _, digests = inspect_tensors(models, names, 1.0)
        files = [path for checkpoint in models.values() for path in checkpoint.files]
        assert digests == {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_siblings_are_told_from_strangers(tmp_path):
    siblings = lineage(inspected(opened(tmp_path / "siblings", clinical=CLINICAL, instruct=INSTRUCT)))
    strangers = lineage(inspected(opened(tmp_path / "strangers", clinical=UNRELATED, instruct=INSTRUCT)))
    between = changed({name: 0.3 * values for name, values in BASE.items()}, 5, 1.0)
    doubtful = lineage(inspected(opened(tmp_path / "doubtful", clinical=between, instruct=BASE)))
    verdicts = [found.verdict(PARENTS) for found in (siblings, strangers, doubtful)]
    assert verdicts == ["one family", "unrelated", "doubtful"]
    assert siblings.medians[PARENTS] > 0.9 and siblings.matrices.pairs[PARENTS].z > 50
    assert abs(strangers.matrices.pairs[PARENTS].z) < 4
    assert "of one family" in siblings.text() and "config.base" in siblings.text()
    assert "meaningless" in strangers.text() and "meaningless" not in siblings.text()
    assert "doubtful" in doubtful.text()


def test_norms_do_not_make_strangers_siblings(tmp_path):
    near_one = {name: np.ones_like(v) for name, v in BASE.items() if v.ndim == 1}
    models = opened(tmp_path, clinical={**UNRELATED, **near_one}, instruct={**INSTRUCT, **near_one})
    assert lineage(inspected(models)).verdict(PARENTS) == "unrelated"


@pytest.mark.parametrize(
    "clinical, nearer, carried",
    [(changed(BASE, 2, 0.3), "base", 0.0), (changed(INSTRUCT, 2, 0.1), "instruct", 1.0), (BASE, "base", None)],
)
def test_what_clinical_was_trained_from_shows(tmp_path, clinical, nearer, carried):
    found = lineage(inspected(opened(tmp_path, clinical=clinical, instruct=INSTRUCT, base=BASE)))
    assert found.nearer == nearer
    assert found.matrices.carried == (None if carried is None else pytest.approx(carried, abs=0.1))
    assert f"nearer to {nearer}" in found.text()


def test_an_equal_distance_is_called_so(tmp_path):
    halfway = {name: (BASE[name] + values) / 2 for name, values in INSTRUCT.items()}
    found = lineage(inspected(opened(tmp_path, clinical=halfway, instruct=INSTRUCT, base=BASE)))
    assert found.nearer == "neither" and "about as far" in found.text()


def test_a_base_that_is_no_ancestor_is_not_counted_from(tmp_path):
    inspections = inspected(opened(tmp_path, clinical=CLINICAL, instruct=INSTRUCT, base=UNRELATED))
    found = lineage(inspections)
    assert found.nearer is None and found.verdict(PARENTS) == "one family"
    assert [found.verdict(pair) for pair in FROM_BASE] == ["unrelated"] * 2
    assert any("no ancestor" in line for line in advice(found, combine(x.measures for x in inspections), 5.0))


def rules(folder, top=5.0, **models):
    inspections = inspected(opened(folder, **models), top)
    return "\n".join(advice(lineage(inspections), combine(one.measures for one in inspections), top))


def test_the_advice_follows_the_numbers(tmp_path):
    close = changed(BASE, 2, 0.001)
    text = rules(tmp_path / "close", clinical=close, instruct=changed(BASE, 1, 0.001), base=BASE)
    assert "slerp and linear give the same result: 21 of 21 tensors" in text
    assert "without much interference" in text and "as chance would have it" in text
    assert "a normal distribution: 27.9%" in text
    both = changed(INSTRUCT, 3, 0.05)
    text = rules(tmp_path / "shared", clinical=both, instruct=INSTRUCT, base=BASE)
    assert "would count what is shared twice" in text and "few conflicts" in text
    opposed = {name: 2 * BASE[name] - values for name, values in INSTRUCT.items()}
    text = rules(tmp_path / "opposed", clinical=opposed, instruct=INSTRUCT, base=BASE)
    assert "oppose each other" in text and "fewer than chance" in text
    sparse = {name: values.copy() for name, values in BASE.items()}
    for values in sparse.values():
        values.ravel()[::40] += 1
    text = rules(tmp_path / "sparse", clinical=sparse, instruct=BASE)
    assert "keep most: the top 5 % of entries hold 100.0%" in text and "none was given" in text
    assert "nothing to merge" in rules(tmp_path / "equal", clinical=BASE, instruct=BASE)
    assert rules(tmp_path / "strangers", clinical=UNRELATED, instruct=BASE).startswith("Do not expect a merge to work")


def test_the_share_of_a_normal_distribution_is_that_of_drawn_entries():
    squares = np.sort(np.random.default_rng(0).normal(size=1_000_000) ** 2)[::-1]
    for top in (1.0, 20.0):
        expected = float(squares[: round(1e4 * top)].sum() / squares.sum())
        assert normal_top_share(top) == pytest.approx(expected, rel=0.01)
    assert normal_top_share(100.0) == 1.0


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
    with pytest.raises(BadInput, match="^config.clinical and config.instruct: share no matrix of a layer"):
        common_tensors(models)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused_by_name(tmp_path, value):
    name = "model.layers.1.mlp.up_proj.weight"
    damaged = {**INSTRUCT, name: INSTRUCT[name].copy()}
    damaged[name][3, 4] = value
    models = opened(tmp_path, clinical=CLINICAL, instruct=damaged)
    with pytest.raises(BadInput, match=f"instruct/model.safetensors: tensor {name} holds NaN or infinity"):
        inspected(models)
