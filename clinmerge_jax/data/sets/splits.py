"""Split sets whose authors publish no splits, by fixed rules that depend on ids only."""

import hashlib
from collections.abc import Iterable, Mapping

SHARES = {"train": 0.8, "valid": 0.1, "test": 0.1}
_SALT = "clinmerge_jax"


def by_hash(key: str) -> str:
    """The split of a patient by `SHARES`, independent of other patients; for sets that are not held in memory."""
    place = int.from_bytes(_digest(key)[:8]) / 2**64
    if place < SHARES["train"]:
        return "train"
    return "valid" if place < SHARES["train"] + SHARES["valid"] else "test"


def by_rank(keys: Iterable[str], shares: Mapping[str, float]) -> dict[str, str]:
    """The split of each key: keys are sorted by hash and divided by the shares.

    Args:
      keys: the row ids, in any order.
      shares: the share of each split. Counts are rounded down; the last split takes the rest. 3,419 rows in `SHARES`
        give 2,735, 341 and 343.
    """
    order = sorted(set(keys), key=_digest)
    names = [split for split, share in shares.items() for _ in range(int(share * len(order)))]
    names += [list(shares)[-1]] * (len(order) - len(names))
    return dict(zip(order, names, strict=True))


def _digest(key: str) -> bytes:
    return hashlib.sha256(f"{_SALT}\0{key}".encode()).digest()
