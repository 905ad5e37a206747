"""Random choices."""

import random

import pytest

from clinmerge_jax import seeded


def test_sample_refuses_too_many():
    with pytest.raises(ValueError, match="cannot sample 3 of 2"):
        seeded.sample(random.Random("test"), "ab", 3)
