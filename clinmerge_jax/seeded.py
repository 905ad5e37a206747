"""Random choices that are the same on every machine.

They call only `random.Random.random`, the one method whose sequence Python guarantees to keep across
versions. Callers seed it with strings.
"""

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def pick(rng: random.Random, items: Sequence[T]) -> T:
    """Returns one item, uniformly."""
    return items[int(rng.random() * len(items))]


def between(rng: random.Random, low: int, high: int) -> int:
    """Returns a whole number from `low` to `high`, both included, uniformly."""
    return low + int(rng.random() * (high - low + 1))


def sample(rng: random.Random, items: Sequence[T], count: int) -> list[T]:
    """Returns `count` distinct items in random order; raises ValueError if there are fewer."""
    if count > len(items):
        raise ValueError(f"cannot sample {count} of {len(items)} items")
    pool = list(items)
    return [pool.pop(int(rng.random() * len(pool))) for _ in range(count)]
