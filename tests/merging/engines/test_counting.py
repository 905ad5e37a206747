"""Counts of codes: the same by NumPy, by additions at places, and by products of one-hot rows."""

import functools

import jax
import numpy as np
import pytest

from clinmerge_jax.merging.engines.counting import count_on_device, count_on_host


@pytest.mark.slow
@pytest.mark.parametrize("bins", [1 << 15, 1 << 16])
@pytest.mark.parametrize("entries", [1, 1000, (1 << 16) + 3])
def test_counts_are_numpys_on_every_kind_of_device(bins, entries):
    rng = np.random.default_rng(entries)
    for codes in (rng.integers(0, 1 << 16, entries), rng.integers(1000, 1003, entries), np.full(entries, bins - 1)):
        codes = codes.astype(np.uint16)
        expected = np.bincount(codes, minlength=1 << 16)[:bins]
        np.testing.assert_array_equal(count_on_host(codes, bins), expected)
        for platform in ("cpu", "gpu", "tpu"):
            count = jax.jit(functools.partial(count_on_device, bins=bins, platform=platform))
            np.testing.assert_array_equal(count(codes), expected)
