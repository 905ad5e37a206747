"""Measures how two parents, and their base if there is one, differ.

Reads checkpoints piece by piece on the host. Sums are taken in float64 over blocks of a fixed number of entries, and
the blocks are added with one rounding (`math.fsum`), so a figure does not depend on how the files are sharded.
"""

import collections
import concurrent.futures
import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from clinmerge_jax.checkpoint.digest import FileDigest, finish_all
from clinmerge_jax.checkpoint.folder import Checkpoint
from clinmerge_jax.checkpoint.formats.safetensors import TensorEntry
from clinmerge_jax.errors import BadInput
from clinmerge_jax.merging.inspection.measures import PARENTS, Measures, PairMeasures, TensorInspection, pairs_of
from clinmerge_jax.merging.methods import PairTotals
from clinmerge_jax.merging.methods.order import place_from_top
from clinmerge_jax.merging.recipes.schedule import layer_of
from clinmerge_jax.merging.row_source import Files

BLOCK = 1 << 17  # entries summed at once; pieces are multiples of it, so that no figure depends on them
PIECE_BYTES = 16 << 20  # of one model, read at once
HELD_BYTES = 256 << 20  # of all models of one tensor that is kept for the second pass, not read again
_WORKERS = 2  # beside the thread that reads and digests; each has one piece of every model


def common_tensors(models: Mapping[str, Checkpoint]) -> tuple[list[str], list[str]]:
    """Finds the tensors that can be compared.

    Args:
      models: checkpoints by role.

    Returns:
      The tensors that all models have in the same shape, in the order of the first; and a line about each other tensor.

    Raises:
      BadInput: the models share no matrix of a layer.
    """
    first = next(iter(models.values()))
    common, others = [], []
    for name in dict.fromkeys(name for checkpoint in models.values() for name in checkpoint.tensors):
        shapes = {role: c.tensors[name].shape for role, c in models.items() if name in c.tensors}
        if len(shapes) < len(models):
            others.append(f"{name}: only in {' and '.join(shapes)}")
        elif len(set(shapes.values())) > 1:
            others.append(f"{name}: " + ", ".join(f"{list(shape)} in {role}" for role, shape in shapes.items()))
        elif math.prod(shapes[next(iter(models))]) == 0:
            others.append(f"{name}: has no entries")
        else:
            common.append(name)
    if not any(layer_of(name) is not None and len(first.tensors[name].shape) == 2 for name in common):
        labels = " and ".join(checkpoint.label for checkpoint in models.values())
        raise BadInput(
            f"{labels}: have no layer matrix with the same name and shape, so there is nothing to compare; give models"
            " of one architecture and size"
        )
    return common, others


_HALF_BITS = 16  # bits of a float32 that each of the two passes determines
_HALF = 1 << _HALF_BITS


def _magnitude_bits(difference: np.ndarray) -> np.ndarray:
    """float64 differences rounded to float32 magnitudes, as uint32 in the same order."""
    return np.abs(difference.astype(np.float32)).view(np.uint32)


def _blocks(piece: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """The models' entries in float64, BLOCK at a time."""
    for start in range(0, len(piece[0]), BLOCK):
        yield [values[start : start + BLOCK].astype(np.float64) for values in piece]


def _first_pass(
    piece: Sequence[np.ndarray], pairs: Sequence[tuple[int, int]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums of squares [blocks, models + pairs], counts [pairs + 2], and a histogram of each pair's magnitudes."""
    sums, counts = [], np.zeros(len(pairs) + 2, np.int64)
    histograms = np.zeros((len(pairs), _HALF), np.int64)
    with np.errstate(invalid="ignore", over="ignore"):  # not finite: shows in the sums, refused there
        for values in _blocks(piece):
            row = [np.sum(x * x) for x in values]
            differences = [values[b] - values[a] for b, a in pairs]
            for index, difference in enumerate(differences):
                row.append(np.sum(difference * difference))
                counts[index] += np.count_nonzero(difference)
                high = _magnitude_bits(difference) >> np.uint32(_HALF_BITS)
                histograms[index] += np.bincount(high, minlength=_HALF)
            one, two = differences[1:] if len(pairs) > 1 else values
            product = one * two  # in float64 it cannot underflow or overflow
            counts[-2] += np.count_nonzero(product)
            counts[-1] += np.count_nonzero(product > 0)
            sums.append(row)
    return np.array(sums), counts, histograms


def _second_pass(
    piece: Sequence[np.ndarray], pairs: Sequence[tuple[int, int]], bins: Sequence[int | None]
) -> tuple[list[list[float]], np.ndarray]:
    """Per pair, the sums of squares above a histogram bin by block, and the counts within the bin."""
    above: list[list[float]] = [[] for _ in pairs]
    within = np.zeros((len(pairs), _HALF), np.int64)
    for values in _blocks(piece):
        for index, ((b, a), chosen) in enumerate(zip(pairs, bins)):
            if chosen is None:
                continue
            difference = values[b] - values[a]
            bits = _magnitude_bits(difference)
            high = bits >> np.uint32(_HALF_BITS)
            above[index].append(float(np.sum(np.square(difference[high > chosen]))))
            within[index] += np.bincount(bits[high == chosen] & np.uint32(_HALF - 1), minlength=_HALF)
    return above, within


def _top_squared(chosen: int, above: Sequence[float], within: np.ndarray, wanted: int) -> float:
    """The sum of squares above a bin and of the `wanted` largest in it, whose values follow from the counts."""
    bits = np.uint32(chosen << _HALF_BITS) + np.arange(_HALF, dtype=np.uint32)
    last, at_last = place_from_top(within, wanted)
    taken = np.where(np.arange(_HALF) > last, within, 0)
    taken[last] = at_last
    held = np.flatnonzero(taken)
    squares = np.square(bits[held].view(np.float32).astype(np.float64))
    return math.fsum([*above, *(taken[held] * squares)])


def _in_order(pool: concurrent.futures.Executor, function: Callable, items: Iterable) -> Iterator:
    """Like `pool.map`, but takes an item only when a worker is free for it."""
    pending: collections.deque[concurrent.futures.Future] = collections.deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > _WORKERS:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def inspect_tensors(
    models: Mapping[str, Checkpoint],
    names: Sequence[str],
    top: float,
    *,
    progress: Callable[[int], None] = lambda nbytes: None,
    piece_bytes: int = PIECE_BYTES,
    held_bytes: int = HELD_BYTES,
) -> tuple[list[TensorInspection], dict[str, str]]:
    """Reads the tensors once (those over `held_bytes` twice) and measures them.

    The figures do not depend on `piece_bytes` and `held_bytes`.

    Args:
      models: "clinical", "instruct" and optionally "base".
      names: names of tensors that all models have in one shape.
      top: percent of a tensor's entries (over 0, up to 100) whose share of the squared change is measured; rounded to
        at least one entry. Entries are ranked by the magnitude of their change in float32.
      progress: called with the bytes of tensors measured since the last call.
      piece_bytes: bytes of one model in one piece.
      held_bytes: maximum bytes that one tensor of all models may take in memory between the passes.

    Returns:
      The figures of each tensor; and the SHA-256 of every weight file by its path.

    Raises:
      BadInput: a tensor holds values that are not finite.
    """
    inspections = []
    digests = {path: FileDigest(path) for checkpoint in models.values() for path in checkpoint.files}
    with contextlib.closing(Files(digests)) as files, concurrent.futures.ThreadPoolExecutor(_WORKERS) as pool:
        for name in names:
            entries = {role: checkpoint.tensors[name] for role, checkpoint in models.items()}
            inspections.append(_inspect(entries, top, files, pool, piece_bytes, held_bytes))
            progress(sum(entry.nbytes for entry in entries.values()))
    return inspections, finish_all(digests.values())


def _inspect(
    entries: Mapping[str, TensorEntry],
    top: float,
    files: Files,
    pool: concurrent.futures.Executor,
    piece_bytes: int,
    held_bytes: int,
) -> TensorInspection:
    roles = list(entries)
    pairs = pairs_of(roles)
    places = [(roles.index(b), roles.index(a)) for b, a in pairs]
    any_entry = entries[PARENTS[0]]
    size = any_entry.size
    widest = max(entry.dtype.itemsize for entry in entries.values())
    step = max(1, piece_bytes // (widest * BLOCK)) * BLOCK
    held = [] if sum(entry.nbytes for entry in entries.values()) <= held_bytes else None

    def pieces() -> Iterator[list[np.ndarray]]:
        for start in range(0, size, step):
            yield [files.read(entry, 1, start, min(step, size - start)).reshape(-1) for entry in entries.values()]

    def kept_pieces() -> Iterator[list[np.ndarray]]:
        for piece in pieces():
            if held is not None:
                held.append(piece)
            yield piece

    blocks, counts, histograms = [], 0, 0
    for block_sums, piece_counts, piece_histograms in _in_order(
        pool, functools.partial(_first_pass, pairs=places), kept_pieces()
    ):
        blocks.append(block_sums)
        counts = counts + piece_counts
        histograms = histograms + piece_histograms
    sums = [math.fsum(column) if np.isfinite(column).all() else math.nan for column in np.concatenate(blocks).T]
    for role, squared in zip(roles, sums):
        if not math.isfinite(squared):
            raise BadInput(
                f"{entries[role].file}: tensor {any_entry.name} holds NaN or infinity; fetch or train that checkpoint"
                " again"
            )

    squared = dict(zip(roles, sums))
    changes = dict(zip(pairs, sums[len(roles) :]))
    k = min(size, max(1, round(size * top / 100)))
    wanted = {
        pair: place_from_top(histograms[index], k) for index, pair in enumerate(pairs) if changes[pair] and k < size
    }
    tops = {pair: changes[pair] for pair in pairs}  # where k covers all entries, or nothing changed
    if wanted:
        bins = [wanted[pair][0] if pair in wanted else None for pair in pairs]
        second = functools.partial(_second_pass, pairs=places, bins=bins)
        above: list[list[float]] = [[] for _ in pairs]
        within = np.zeros((len(pairs), _HALF), np.int64)
        for piece_above, piece_within in _in_order(pool, second, pieces() if held is None else held):
            within += piece_within
            for all_above, some in zip(above, piece_above):
                all_above += some
        for index, pair in enumerate(pairs):
            if pair in wanted:
                chosen, place = wanted[pair]
                tops[pair] = _top_squared(chosen, above[index], within[index], place)

    measures = {
        (b, a): PairMeasures(
            totals=PairTotals(squared[a], squared[b], changes[b, a]),
            entries=size,
            changed=int(counts[index]),
            top_squared=tops[b, a],
        )
        for index, (b, a) in enumerate(pairs)
    }
    collinear = int(measures[PARENTS].totals.collinear)
    return TensorInspection(
        any_entry.name, any_entry.shape, Measures(measures, 1, collinear, int(counts[-2]), int(counts[-1]))
    )
