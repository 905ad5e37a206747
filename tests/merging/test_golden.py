"""Parity with mergekit 0.1.5's results on three small Llamas, and closeness to the float64 truth."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.output import OutputFolder
from clinmerge_jax.checkpoint.safetensors import read_header, read_tensor
from clinmerge_jax.merging.methods import COLLINEAR_COSINE
from clinmerge_jax.merging.plan import plan_merge
from clinmerge_jax.merging.recipe import Recipe, Schedule, Source, interpolation
from clinmerge_jax.merging.streaming import run_merge

LINEAR = {
    "linear_0.6_0.4": {"ft1": Fraction(6, 10), "ft2": Fraction(4, 10)},
    "linear_3models": {"base": Fraction(1), "ft1": Fraction(2), "ft2": Fraction(3)},
}
CASES = ["linear_0.6_0.4", "linear_3models", "slerp_t0.5", "slerp_t0.5_f32math"]


def _recipe(case, models):
    if case not in LINEAR:
        return interpolation("slerp", str(models / "ft1"), str(models / "ft2"), 0.5)
    weights = {name: Schedule.parse(float(weight), "weight") for name, weight in LINEAR[case].items()}
    return Recipe("linear", tuple(Source(str(models / name), {"weight": w}) for name, w in weights.items()))


@pytest.fixture
def merged(shared, tmp_path):
    def merge(case, dtype):
        golden = shared / "golden" / "mergekit"
        recipe = _recipe(case, golden / f"models_{dtype}")
        sources = [open_checkpoint(source.model, "model") for source in recipe.sources]
        with OutputFolder(tmp_path / case, {}) as output:
            output.open()
            run_merge(plan_merge(recipe, sources), output)
            output.commit({})
        peer = read_header(golden / "out" / f"{case}.{dtype}.safetensors")
        return open_checkpoint(str(tmp_path / case), "merged"), sources, peer

    return merge


def _truth(case, tensors):
    """The merge in float64, without cancellation: linear weights are exact decimals, so the sum is taken in tenths."""
    if case in LINEAR:
        weights = list(LINEAR[case].values())
        scaled = sum(float(10 * weight) * x for weight, x in zip(weights, tensors))
        return scaled / float(10 * sum(weights))
    one, two = tensors
    cosine = np.sum(one / np.linalg.norm(one) * (two / np.linalg.norm(two)))
    if abs(cosine) > COLLINEAR_COSINE:
        return 0.5 * one + 0.5 * two
    angle = np.arccos(cosine)
    return np.sin(0.5 * angle) / np.sin(angle) * (one + two)


def _unit(truth):
    """One unit in the last place of bfloat16 (8 significant bits) at each value."""
    _, exponent = np.frexp(truth)
    return np.ldexp(1.0, np.maximum(exponent - 8, -133))


@pytest.mark.parametrize("case", CASES[:3])
def test_float32_merges_equal_the_peers(merged, case, figures):
    ours, _, peer = merged(case, "f32")
    assert peer
    largest = 0.0
    for name, entry in peer.items():
        expected = read_tensor(entry)
        difference = np.abs(read_tensor(ours.tensors[name]) - expected).max() / np.abs(expected).max()
        assert difference <= 1e-6, name
        largest = max(largest, difference)
    figures.append(f"{case} at float32: largest difference to the peer {largest:.2g} of the tensor's largest value")


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_merges_are_the_rounded_truth(merged, case, figures):
    ours, sources, peer = merged(case, "bf16")
    entries = clear = right = right_clear = peer_right = 0
    for name, entry in peer.items():
        result = read_tensor(ours.tensors[name])
        assert result.dtype == np.dtype(ml_dtypes.bfloat16)
        result = result.astype(np.float64)
        truth = _truth(case, [read_tensor(source.tensors[name]).astype(np.float64) for source in sources])
        unit = _unit(truth)
        assert np.all(np.abs(result - truth) <= unit), name
        rounded = np.rint(truth / unit) * unit
        from_midpoint = np.abs(np.abs(truth / unit - np.floor(truth / unit)) - 0.5)
        away = from_midpoint > 1e-3
        entries += truth.size
        clear += away.sum()
        right += (result == rounded).sum()
        right_clear += (result == rounded)[away].sum()
        peer_right += (read_tensor(entry).astype(np.float64) == rounded).sum()
    figures.append(
        f"{case}: correctly rounded {right / entries:.6f} of all entries (peer {peer_right / entries:.6f}),"
        f" {right_clear / clear:.6f} of the {clear} away from a midpoint"
    )
    assert right_clear >= 0.9999 * clear
