"""Plans of few shapes: they hold every step, hardly pad, and follow from lengths alone."""

import numpy as np
import pytest

from clinmerge_jax.data.documents import Encoded
from clinmerge_jax.data.plan import Plan, Rules, Shape, make_plan
from clinmerge_jax.data.sequences import sequences_of

RULES = Rules(longest=1024, at_a_time=1024, pair=1e-3)


def _steps(count=40, each=8, seed=0):
    """Sizes as few-shot examples have them: many short ones, some long."""
    rng = np.random.default_rng(seed)
    sizes = np.clip(np.exp(rng.normal(5.2, 0.8, (count, each))), 20, 1024).astype(int)
    return sizes.tolist()


def _filled(plan, steps):
    computed = [plan.rules.computed(len(rows), shape) for shape, rows in map(plan.rows, steps)]
    return sum(map(sum, steps)) / sum(shape.rows * shape.tokens for shape in computed)


@pytest.mark.parametrize("rules", [
    RULES, Rules(1024, pair=1e-3), Rules(1024, parts=8), Rules(1024, micro_batch=2), Rules(1024, alone=True),
    Rules(1024, unit=128, alone=True, parts=3),
])  # fmt: skip
@pytest.mark.parametrize("programs", [1, 4])
def test_every_step_fits_one_of_few_shapes(rules, programs):
    steps = _steps()
    plan = make_plan(steps, rules, 0.0, programs)
    assert 1 <= len(plan.shapes) <= programs
    for sizes in steps:
        shape, rows = plan.rows(sizes)
        assert shape in plan.shapes and len(rows) <= shape.rows
        assert shape.rows % rules.micro_batch_of(shape.rows, shape.tokens) == shape.rows % rules.parts == 0
        assert shape.tokens % rules.unit == 0 or shape.tokens == rules.longest
        assert sorted(number for row in rows for number in row) == list(range(len(sizes)))
        assert all(sum(sizes[number] for number in row) <= shape.tokens for row in rows)
        assert not rules.alone or all(len(row) == 1 for row in rows)


def test_shapes_are_worth_their_programs():
    steps = _steps()
    free, dear = (make_plan(steps, RULES, charge) for charge in (0.0, 1e9))
    assert len(free.shapes) == 4 and len(dear.shapes) == 1
    alone = sum(map(sum, steps)) / sum(8 * max(sizes) for sizes in steps)
    assert _filled(free, steps) > 0.82 and _filled(dear, steps) > 0.75 and alone < 0.5
    assert f"{_filled(free, steps):.1%} of the computed tokens are not padding" in free.describe(steps)


def test_a_plan_follows_from_the_sizes_and_not_from_their_places():
    steps = _steps()
    plan = make_plan(steps, RULES, 100.0)
    assert plan == make_plan([sizes[::-1] for sizes in steps[::-1]], RULES, 100.0)


def test_steps_that_are_not_known_fit_too():
    plan = make_plan(_steps(5, 4), RULES, 0.0, further=RULES.shape(4, 1024))
    assert Shape(4, 1024) in plan.shapes
    assert plan.rows([1024] * 4)[0] == Shape(4, 1024)
    with pytest.raises(ValueError, match="none of the planned shapes holds 5 sequences of up to 1024 tokens"):
        plan.rows([1024] * 5)


def test_rows_are_no_longer_than_they_may_be():
    assert (
        Rules(12).lengths(3) == [12]
        and Rules(100).lengths(70) == [100]
        and Rules(200).lengths(3) == [64, 128, 192, 200]
    )


def test_a_batch_has_micro_batches_with_the_empty_rows_last():
    sequences = sequences_of([[Encoded(np.full(size, size, np.int32), np.arange(size) > 0)] for size in (3, 5, 4, 6)])
    plan = Plan((Shape(6, 8),), Rules(8, micro_batch=2))
    batch = plan.batch(sequences, np.array([3, 0, 1]))
    assert batch.tokens.shape == (3, 2, 8)
    assert batch.segments.any(axis=2).tolist() == [[True, True], [False, False], [False, False]]
    assert batch.tokens[0].tolist() == [[6] * 6 + [0] * 2, [5] * 5 + [3] * 3]
    assert plan.rules.computed(2, plan.shapes[0]) == Shape(2, 8)


@pytest.mark.parametrize("tokens, rows", [(64, 1), (512, 1), (256, 2), (256, 4), (256, 5), (700, 3)])
def test_steps_of_few_full_rows_compute_nothing_else(tokens, rows):
    plan = make_plan([[tokens] * rows] * 3, Rules(longest=tokens, at_a_time=1024), 0.0)
    batch = plan.batch(
        sequences_of([[Encoded(np.ones(tokens, np.int32), np.ones(tokens, bool))]] * rows), np.arange(rows)
    )
    micro_batch = min(rows, 1024 // tokens)
    assert batch.tokens.shape == (-(-rows // micro_batch), micro_batch, tokens)
