"""Splits of sets whose authors publish none: fixed rules that depend on ids alone."""

import hashlib
from collections.abc import Iterable, Mapping

SHARES = {"train": 0.8, "valid": 0.1, "test": 0.1}
_SALT = "clinmerge_jax"


def by_hash(key: str) -> str:
    """The split of a patient in `SHARES`, whatever other patients there are: for sets that are not held in memory."""
    place = int.from_bytes(_digest(key)[:8]) / 2**64
    if place < SHARES["train"]:
        return "train"
    return "valid" if place < SHARES["train"] + SHARES["valid"] else "test"


def by_rank(keys: Iterable[str], shares: Mapping[str, float]) -> dict[str, str]:
    """The split of each key: all are put into the order of their hashes, and cut into whole numbers by the shares.

    Args:
      keys: of the rows, in any order.
      shares: of the splits, rounded down; the last one takes the rest. 3,419 rows in `SHARES` are 2,735, 341 and 343.
    """
    order = sorted(set(keys), key=_digest)
    names = [split for split, share in shares.items() for _ in range(int(share * len(order)))]
    names += [list(shares)[-1]] * (len(order) - len(names))
    return dict(zip(order, names, strict=True))


def _digest(key: str) -> bytes:
    return hashlib.sha256(f"{_SALT}\0{key}".encode()).digest()
