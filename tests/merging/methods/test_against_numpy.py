"""What the methods come to, against their formulas written out in float64 NumPy, for settings that mergekit's results
in the shared folder do not have.
"""

import importlib
import math
import pkgutil
import re

import numpy as np
import pytest
from method_runner import agreeing_sum, largest, run_method, siblings
from support import in_every_run

from clinmerge_jax.merging import methods
from clinmerge_jax.merging.methods import METHODS

SHAPE = (24, 300)
SIZE = SHAPE[0] * SHAPE[1]


def _doubles(arrays):
    base, *models = (array.astype(np.float64) for array in arrays)
    return base, models, [model - base for model in models]


def _close(result, expected, limit=1e-6):
    difference = np.abs(result - expected).max() / np.abs(expected).max()
    assert difference <= limit, difference


@pytest.mark.parametrize("name", [one.name for one in pkgutil.iter_modules(methods.__path__)])
def test_every_file_of_methods_names_its_source(name):
    if name not in ("common", "order", "weighted_sum", "task_vectors"):
        docstring = importlib.import_module(f"{methods.__name__}.{name}").__doc__
        assert re.search(r"arXiv \d{4}\.\d{4,5}|\b(19|20)\d\d\b|mergekit", docstring)


def test_task_arithmetic_divides_by_the_weights_if_asked():
    arrays = siblings(2, SHAPE)
    base, _, (one, two) = _doubles(arrays)
    weights = [{"weight": 0.6}, {"weight": 0.2}]
    _close(run_method("task_arithmetic", arrays, weights, lambda_=0.7), base + 0.7 * (0.6 * one + 0.2 * two))
    _close(
        run_method("task_arithmetic", arrays, weights, lambda_=0.7, normalize=True),
        base + 0.7 * (0.6 * one + 0.2 * two) / 0.8,
    )


@pytest.mark.parametrize("normalize", in_every_run([True, False], lambda normalize: not normalize))
def test_ties_with_a_negative_weight_and_rescaling(normalize):
    arrays = siblings(3, SHAPE)
    base, _, changes = _doubles(arrays)
    densities, weights = (0.2, 0.5, 0.9), (0.7, -0.4, 0.5)
    kept = [np.where(largest(d, int(density * SIZE)), d, 0) for d, density in zip(changes, densities)]
    kept = [k * np.abs(d).sum() / np.abs(k).sum() for k, d in zip(kept, changes)]
    each = [{"weight": w, "density": density} for w, density in zip(weights, densities)]
    merged = run_method("ties", arrays, each, rescale=True, normalize=normalize, lambda_=0.8)
    if not normalize:
        return _close(merged, base + 0.8 * agreeing_sum(kept, weights, False))
    # Agreeing weights of both signs may cancel to nearly nothing: look where they do not.
    weighted = [w * k for w, k in zip(weights, kept)]
    sign = np.where(sum(weighted) >= 0, 1.0, -1.0)
    share = sum(w * (np.sign(one) == sign) for w, one in zip(weights, weighted))
    clear = np.abs(share) > 0.05
    expected = base + 0.8 * agreeing_sum(kept, weights, True)
    _close(merged[clear], expected[clear])


@pytest.mark.parametrize("name", ["breadcrumbs", "breadcrumbs_ties"])
@pytest.mark.parametrize(("density", "gamma"), [(0.9, 0.01), (0.5, 0.2), (0.9, 0.3), (1.0, 0.1)])
def test_breadcrumbs_drop_the_largest_and_the_smallest(name, density, gamma):
    arrays = siblings(2, SHAPE)
    base, _, changes = _doubles(arrays)
    count = int(density * SIZE) if density < 1 else SIZE
    top = min(int(gamma * SIZE), SIZE - count)
    kept = [np.where(largest(d, count + top) & ~largest(d, top), d, 0) for d in changes]
    assert all((largest(d, count + top) & ~largest(d, top)).sum() == count for d in changes)
    weights = (0.5, 0.4)
    each = [{"weight": w, "density": density, "gamma": gamma} for w in weights]
    total = agreeing_sum(kept, weights, False) if name.endswith("ties") else sum(w * k for w, k in zip(weights, kept))
    _close(run_method(name, arrays, each), base + total)


def test_breadcrumbs_keep_the_change_of_a_tensor_too_small_to_have_outliers():
    arrays = siblings(1, (1, 30))
    kept = run_method("breadcrumbs", arrays, {"weight": 1.0, "density": 0.9, "gamma": 0.01})
    base, (model,), (change,) = _doubles(arrays)
    _close(kept, base + np.where(largest(change, 27), change, 0))


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_sce_selects_by_variance(share):
    arrays = siblings(3, SHAPE)
    base, _, changes = _doubles(arrays)
    variance = np.var(np.stack([c.astype(np.float32) for c in changes]).astype(np.float64), axis=0)
    count = int(share * (variance > 0).sum()) if share < 1 else SIZE
    kept = [np.where(largest(variance, count), change, 0) for change in changes]
    squares = np.array([np.mean(k**2) for k in kept])
    weights = squares / squares.sum()
    sign = np.where(sum(kept) >= 0, 1.0, -1.0)
    agree = [np.sign(k) == sign for k in kept]
    divisor = np.maximum(sum(w * a for w, a in zip(weights, agree)), 1e-6)
    expected = base + sum(np.where(a, w * k, 0) for a, w, k in zip(agree, weights, kept)) / divisor
    merged = run_method("sce", arrays, select_topk=share)
    wrong = np.abs(merged - expected) > 1e-6 * np.abs(expected).max()
    assert wrong.sum() <= 2  # variances that differ by less than float32's rounding may be taken in another order


@pytest.mark.parametrize("by_row", [False, True])
def test_model_stock_of_three(by_row):
    arrays = siblings(3, SHAPE)
    base, models, changes = _doubles(arrays)
    axis = 1 if by_row else None

    def cosine(a, b):
        norms = [np.sqrt(np.sum(x * x, axis=axis, keepdims=True)) for x in (a, b)]
        return np.sum(a * b, axis=axis, keepdims=True) / (norms[0] * norms[1])

    mean = np.mean([cosine(changes[i], changes[j]) for i, j in ((0, 1), (0, 2), (1, 2))], axis=0)
    t = 3 * mean / (1 + 2 * mean)
    _close(run_method("model_stock", arrays, filter_wise=by_row), t * sum(models) / 3 + (1 - t) * base)


def _log_map_mean(vectors, weights, steps, start):
    """The Riemannian mean of unit vectors by tangent steps."""
    centre = start / np.linalg.norm(start)
    for _ in range(steps):
        tangent = np.zeros_like(centre)
        for weight, unit in zip(weights, vectors):
            dot = np.clip(np.sum(unit * centre), -1, 1)
            angle = math.acos(dot)
            if angle > 1e-5:
                tangent += weight * angle / math.sin(angle) * (unit - dot * centre)
        length = np.linalg.norm(tangent)
        if length < 1e-5:
            break
        centre = math.cos(length) * centre + math.sin(length) / length * tangent
        centre /= np.linalg.norm(centre)
    return centre


def test_karcher_is_the_mean_on_the_sphere_whatever_the_angles():
    arrays = [np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32) * (1 + seed) for seed in range(3)]
    doubles = [array.astype(np.float64) for array in arrays]
    norms = [np.linalg.norm(x) for x in doubles]
    units = [x / norm for x, norm in zip(doubles, norms)]
    mean = _log_map_mean(units, [1 / 3] * 3, 10, sum(units))
    _close(run_method("karcher", arrays), mean * np.mean(norms))
    copies = [doubles[0], doubles[0] * 3, np.zeros(SHAPE)]
    merged = run_method("karcher", [x.astype(np.float32) for x in copies])
    _close(merged, units[0] * norms[0] * 4 / 3)


@pytest.mark.parametrize("with_base", [False, True])
def test_multislerp_of_three(with_base):
    arrays = siblings(3, SHAPE)
    base, models, changes = _doubles(arrays)
    vectors = changes if with_base else models
    weights = np.array([0.5, 0.2, 0.1])
    shares = weights / weights.sum()
    norms = [np.linalg.norm(x) for x in vectors]
    units = [x / norm for x, norm in zip(vectors, norms)]
    chord = sum(w * u for w, u in zip(shares, units))
    mean = chord / np.linalg.norm(chord)
    tangent = sum(w * (u - np.sum(u * mean) * mean) for w, u in zip(shares, units))
    angle = np.linalg.norm(tangent)
    direction = math.cos(angle) * mean + (math.sin(angle) / angle * tangent if angle > 1e-9 else 0)
    expected = direction * (shares @ norms) + (base if with_base else 0)
    each = [{"weight": w} for w in weights]
    given = arrays if with_base else arrays[1:]
    _close(run_method("multislerp", given, each, from_base=with_base), expected)


@pytest.mark.parametrize("by_column", [False, True])
@pytest.mark.parametrize("with_base", [False, True])
def test_nuslerp_by_rows_and_by_columns(with_base, by_column):
    arrays = siblings(2, SHAPE)
    base, models, changes = _doubles(arrays)
    one, two = changes if with_base else models
    axis = 0 if by_column else 1
    norms = [np.linalg.norm(x, axis=axis, keepdims=True) for x in (one, two)]
    theta = np.arccos(np.sum(one * two, axis=axis, keepdims=True) / (norms[0] * norms[1]))
    t = 0.75
    expected = (np.sin((1 - t) * theta) * one + np.sin(t * theta) * two) / np.sin(theta) + (base if with_base else 0)
    given = arrays if with_base else arrays[1:]
    asked = {"nuslerp_flatten": False, "nuslerp_row_wise": by_column}
    merged = run_method("nuslerp", given, [{"weight": 0.2}, {"weight": 0.6}], from_base=with_base, **asked)
    _close(merged, expected)


@pytest.mark.parametrize("rescale", [False, True])
def test_ram_keeps_what_one_model_changed_and_averages_what_several_did(rescale):
    arrays = siblings(3, SHAPE)
    base, _, changes = _doubles(arrays)
    epsilon = 0.05
    masks = [np.abs(change) > epsilon for change in changes]
    count = sum(mask.astype(int) for mask in masks)
    expected = base.copy()
    for change, mask in zip(changes, masks):
        alone, shared = (mask & (count == 1)).sum(), (mask & (count > 1)).sum()
        own = 1 + 0.3 * min(max(shared / alone, 0), 0.5) if rescale else 1.0
        expected += np.where(mask & (count == 1), own * change, 0)
        expected += np.where(mask & (count > 1), change / np.maximum(count, 1), 0)
    given = {"r": 0.3, "alpha": 0.5} if rescale else {}
    _close(run_method("ramplus_tl" if rescale else "ram", arrays, epsilon=epsilon, **given), expected)


def test_arcee_fusion_takes_what_is_important():
    first, second = siblings(1, SHAPE)
    a, b = first.astype(np.float64), second.astype(np.float64)

    def softmax(x):
        exps = np.exp(x - x.max(axis=1, keepdims=True))
        return exps / exps.sum(axis=1, keepdims=True) + 1e-8

    p, q = softmax(b), softmax(a)
    importance = np.abs(b - a) * np.sum(p * np.log(p / q), axis=1, keepdims=True)
    ordered = np.sort(importance, axis=None)
    low, median, high = (ordered[int(share * (SIZE - 1))] for share in (0.25, 0.5, 0.75))
    taken = importance >= median + 1.5 * (high - low)
    merged = run_method("arcee_fusion", [first, second])
    assert 0.005 < taken.mean() < 0.2
    assert (merged != np.where(taken, second, first)).mean() < 1e-3


def test_nearswap_takes_what_is_near():
    first, second = siblings(1, SHAPE)
    a, b = first.astype(np.float64), second.astype(np.float64)
    share = np.clip(0.05 / np.maximum(np.abs(a - b), 1e-6), 0, 1)
    _close(run_method("nearswap", [first, second], t=0.05), share * b + (1 - share) * a)


def test_passthrough_scales():
    (array,) = siblings(0, SHAPE)
    np.testing.assert_array_equal(run_method("passthrough", [array]), array)
    _close(run_method("passthrough", [array], {"scale": -0.3}), -0.3 * array.astype(np.float64))


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.models[1] is None])
def test_one_model_and_its_copies_give_that_model_back(name):
    """What every mean must do: merging equal models changes nothing (beyond rounding)."""
    base, model = siblings(1, SHAPE)
    method = METHODS[name]
    each = {"weight": 0.5} if "weight" in method.source_parameters else {}
    takes_base = method.base.value == "required"
    arrays = [base, model, model] if takes_base else [model, model]
    _close(run_method(name, arrays, each), model.astype(np.float64), 3e-6)
