"""The order of sequences: whole epochs, the same for any number of processes, restored from any step."""

import json

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from clinmerge_jax.data.documents import Encoded
from clinmerge_jax.data.loader import load, local_rows, order, steps_of
from clinmerge_jax.data.plan import Plan, Rules
from clinmerge_jax.data.sequences import joined, sequences_of


def _sequences(count, first=1):
    """Sequences of 2 to 4 tokens that hold their own numbers."""
    numbers = range(first, first + count)
    return sequences_of([[Encoded(np.full(2 + one % 3, one, np.int32), np.arange(2 + one % 3) > 0)] for one in numbers])


def _load(count, steps, batch_size, micro_batch=0, seed=0, replayed=0, share=0.0, **more):
    sequences = _sequences(count)
    if replayed:
        sequences = joined(sequences, _sequences(replayed, first=100))
    rules = Rules(4, unit=1, micro_batch=micro_batch, alone=True)
    plan = Plan((rules.shape(batch_size, 3), rules.shape(batch_size, 4)), rules)
    return load(sequences, order(count, seed, replayed, share), plan, steps, batch_size, **more)


def _numbers(batches):
    """The number of each sequence, [steps, A x B], whatever the rows' length."""
    return np.stack([batch.tokens[..., 0].reshape(-1) for batch in batches])


def test_epochs_are_permutations_that_follow_on_one_another_within_a_batch():
    numbers = _numbers(_load(10, steps=15, batch_size=4)).reshape(6, 10)
    assert all(sorted(epoch) == list(range(1, 11)) for epoch in numbers)
    assert len({tuple(epoch) for epoch in numbers}) == 6


@pytest.mark.parametrize("count", [1, 2, 3])
def test_fewer_sequences_than_a_batch_takes_are_repeated_in_it(count):
    numbers = _numbers(_load(count, steps=3, batch_size=8)).reshape(-1)
    assert len(numbers) == 24
    epochs = numbers[: 24 // count * count].reshape(-1, count)
    assert all(sorted(epoch) == list(range(1, count + 1)) for epoch in epochs)


def test_a_step_may_take_a_single_sequence():
    assert sorted(_numbers(_load(3, steps=3, batch_size=1)).reshape(-1)) == [1, 2, 3]
    replayed = _numbers(_load(3, steps=4, batch_size=1, replayed=2, share=0.5)).reshape(-1)
    assert (replayed >= 100).sum() == 2


def test_the_order_follows_from_the_seed_and_never_changes():
    first, other = (_numbers(_load(8, 2, 4, seed=seed)).reshape(-1) - 1 for seed in (0, 1))
    assert first.tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert other.tolist() == [3, 5, 2, 7, 0, 6, 1, 4]


def test_each_batch_has_the_shape_that_its_sequences_need():
    shapes = set()
    for batch in _load(9, steps=9, batch_size=2, micro_batch=1):
        sizes = 2 + batch.tokens[..., 0] % 3
        shapes.add(batch.tokens.shape)
        assert batch.tokens.shape == (2, 1, max(3, sizes.max()))
        np.testing.assert_array_equal(batch.segments.sum(axis=2), sizes)
        np.testing.assert_array_equal(batch.targets.sum(axis=2), sizes - 1)
        np.testing.assert_array_equal(batch.positions.max(axis=2), sizes - 1)
    assert len(shapes) == 2


def test_the_parts_of_two_processes_are_the_batch_of_one():
    def half(number):
        return lambda rows: slice(number * rows // 2, (number + 1) * rows // 2)

    whole = list(_load(11, 6, 12, micro_batch=4))
    parts = [list(_load(11, 6, 12, micro_batch=4, local=half(number))) for number in (0, 1)]
    for one, *both in zip(whole, *parts, strict=True):
        np.testing.assert_array_equal(np.concatenate([part.tokens for part in both], axis=1), one.tokens)


def test_micro_batches_take_the_same_sequences_for_a_step():
    once, often = (_numbers(_load(11, 6, 8, micro_batch)) for micro_batch in (0, 2))
    np.testing.assert_array_equal(once, often)


@pytest.mark.parametrize("replayed", [0, 7])
def test_a_saved_state_goes_on_in_the_middle_of_an_epoch(replayed):
    mixed = {"replayed": replayed, "share": 0.25}
    whole = _numbers(_load(10, 9, 4, seed=3, **mixed))
    for done in (0, 3, 8, 9):
        started = _load(10, 9, 4, seed=3, **mixed)
        for _ in range(done):
            next(started)
        saved = json.loads(json.dumps(started.get_state()))
        restored = _load(10, 9, 4, seed=3, **mixed)
        restored.set_state(saved)
        rest = list(restored)
        assert len(rest) == 9 - done
        if rest:
            np.testing.assert_array_equal(_numbers(rest), whole[done:])


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_replayed_sequences_have_their_share_of_every_step(share):
    numbers = _numbers(_load(10, 100, 16, replayed=6, share=share))
    replayed = (numbers >= 100).sum(axis=1)
    assert abs(replayed - share * 16).max() < 1
    assert abs(replayed.mean() - share * 16) < 0.05
    for some in (numbers[numbers < 100] - 1, numbers[numbers >= 100] - 100):
        count = some.max() + 1
        epochs = some[: len(some) // count * count].reshape(-1, count)
        assert all(sorted(epoch) == list(range(count)) for epoch in epochs)


def test_steps_scale_with_the_sequences_unless_they_are_given():
    assert steps_of(sequences=64, batch_size=16, epochs=3) == 12
    assert steps_of(sequences=65, batch_size=16, epochs=3) == 13  # every sequence is seen three times
    assert steps_of(sequences=2, batch_size=16, epochs=1) == 1
    assert steps_of(sequences=100, batch_size=10, epochs=1.1) == 11
    assert steps_of(sequences=60, batch_size=16, epochs=1, replay=0.25) == 5
    assert steps_of(sequences=64, batch_size=16, epochs=3, steps=7) == 7


class _OfAnotherProcess:
    """A sharding whose devices here hold these rows."""

    def __init__(self, *held):
        self._held = {device: (part,) for device, part in enumerate(held)}

    def addressable_devices_indices_map(self, shape):
        return self._held


def test_a_process_reads_the_rows_that_its_devices_hold():
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    assert local_rows(NamedSharding(mesh, PartitionSpec("data")), 8) == slice(0, 8)
    assert local_rows(NamedSharding(mesh, PartitionSpec()), 8) == slice(0, 8)
    second = _OfAnotherProcess(slice(6, 8), slice(4, 6), slice(4, 6))
    assert local_rows(second, 8) == slice(4, 8)
    with pytest.raises(ValueError, match="are not consecutive"):
        local_rows(_OfAnotherProcess(slice(0, 2), slice(4, 6)), 8)
