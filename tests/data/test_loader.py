"""The order of rows: whole epochs, the same for any number of processes, restored from any step."""

import json

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from clinmerge_jax.data.batch import Batch
from clinmerge_jax.data.loader import load, local_rows, steps_of


def _rows(count, first=0):
    """Rows that hold their own numbers."""
    tokens = np.arange(first, first + count, dtype=np.int32)[:, None] + np.zeros((1, 3), np.int32)
    return Batch(tokens, tokens > 0, tokens + 1, tokens + 2)


def _places(batches):
    """The number of each row, [steps, A, B]."""
    return np.stack([batch.tokens[..., 0] for batch in batches])


def test_epochs_are_permutations_that_follow_on_one_another_within_a_batch():
    places = _places(load(_rows(10), steps=15, batch_size=4)).reshape(6, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in places)
    assert len({tuple(epoch) for epoch in places}) == 6


@pytest.mark.parametrize("count", [1, 2, 3])
def test_fewer_rows_than_a_batch_takes_are_repeated_in_it(count):
    places = _places(load(_rows(count), steps=3, batch_size=4, accumulate=2)).reshape(-1)
    assert len(places) == 24
    assert all(sorted(epoch) == list(range(count)) for epoch in places[: 24 // count * count].reshape(-1, count))


def test_the_order_follows_from_the_seed_and_never_changes():
    first, other = (_places(load(_rows(8), 2, 4, seed=seed)).reshape(-1) for seed in (0, 1))
    assert first.tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert other.tolist() == [3, 5, 2, 7, 0, 6, 1, 4]


def test_all_arrays_of_a_row_stay_together():
    for batch in load(_rows(9), steps=4, batch_size=2, accumulate=2):
        assert batch.tokens.shape == (2, 2, 3)
        np.testing.assert_array_equal(batch.targets, batch.tokens > 0)
        np.testing.assert_array_equal(batch.positions, batch.tokens + 1)
        np.testing.assert_array_equal(batch.segments, batch.tokens + 2)


def test_the_parts_of_two_processes_are_the_batch_of_one():
    whole = _places(load(_rows(11), 6, batch_size=4, accumulate=3))
    parts = [_places(load(_rows(11), 6, 4, 3, local=part)) for part in (slice(0, 2), slice(2, 4))]
    np.testing.assert_array_equal(np.concatenate(parts, axis=2), whole)


def test_accumulation_takes_the_same_rows_for_a_step():
    once, often = (_places(load(_rows(11), 6, 8 // parts, parts)).reshape(6, 8) for parts in (1, 4))
    np.testing.assert_array_equal(once, often)


@pytest.mark.parametrize("replay", [None, 7])
def test_a_saved_state_goes_on_in_the_middle_of_an_epoch(replay):
    mixed = {} if replay is None else {"replay": _rows(replay, first=100), "replay_share": 0.25}
    whole = _places(load(_rows(10), 9, 4, seed=3, **mixed))
    for done in (0, 3, 8, 9):
        started = load(_rows(10), 9, 4, seed=3, **mixed)
        for _ in range(done):
            next(started)
        saved = json.loads(json.dumps(started.get_state()))
        restored = load(_rows(10), 9, 4, seed=3, **mixed)
        restored.set_state(saved)
        rest = list(restored)
        assert len(rest) == 9 - done
        if rest:
            np.testing.assert_array_equal(_places(rest), whole[done:])


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_replayed_rows_have_their_share_of_every_step(share):
    places = _places(load(_rows(10), 100, 16, replay=_rows(6, first=100), replay_share=share)).reshape(100, 16)
    replayed = (places >= 100).sum(axis=1)
    assert abs(replayed - share * 16).max() < 1
    assert abs(replayed.mean() - share * 16) < 0.05
    for rows in (places[places < 100], places[places >= 100] - 100):
        count = rows.max() + 1
        assert all(
            sorted(epoch) == list(range(count)) for epoch in rows[: len(rows) // count * count].reshape(-1, count)
        )


def test_steps_scale_with_the_rows_unless_they_are_given():
    assert steps_of(rows=64, rows_per_step=16, epochs=3) == 12
    assert steps_of(rows=65, rows_per_step=16, epochs=3) == 13  # every row is seen three times
    assert steps_of(rows=2, rows_per_step=16, epochs=1) == 1
    assert steps_of(rows=100, rows_per_step=10, epochs=1.1) == 11
    assert steps_of(rows=60, rows_per_step=16, epochs=1, replay=0.25) == 5
    assert steps_of(rows=64, rows_per_step=16, epochs=3, steps=7) == 7


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
    with pytest.raises(ValueError, match="do not follow one another"):
        local_rows(_OfAnotherProcess(slice(0, 2), slice(4, 6)), 8)
