"""Training that does not fit into memory is tried again with less kept for the backward pass; other errors are not."""

import pytest

from clinmerge_jax.benchmark.gpu_check import steps
from clinmerge_jax.benchmark.gpu_check.parts import part_named

SETTINGS = {**part_named("lora").settings, "repeats": 2}


@pytest.mark.slow
def test_what_does_not_fit_is_trained_with_less_kept_and_stays_so():
    tried = []

    def train(job):
        tried.append(job["remat"])
        if job["remat"] == "none":
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1 byte")
        return {"seconds": 1.0}

    assert [kept for _, kept in steps.repeats(train, SETTINGS)] == ["full", "full"]
    assert tried == ["none", "full", "full"]


def test_other_errors_are_not_tried_again():
    def train(job):
        raise RuntimeError("INTERNAL: no such kernel")

    with pytest.raises(RuntimeError, match="no such kernel"):
        list(steps.repeats(train, SETTINGS))


def test_mfu_counts_what_is_needed_against_the_measured_product():
    # 4 operations for each of the 7.5e9 weights that multiply a token, and 12 for each pair in 32 layers of 4,096.
    weights, pairs = 8.03e9 - 128256 * 4096, 4096 * 4097 / 2 * 32 * 4096
    expected = (4 * weights * 4096 + 12 * pairs) / 2.0 / 1e14
    assert steps.mfu(SETTINGS, {"seconds": 2.0, "product_flops": 1e14}) == pytest.approx(expected, rel=1e-3)
