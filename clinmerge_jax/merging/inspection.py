"""What two parents, and a base if there is one, have in common: distances, angles, signs, lineage.

Reads Checkpoints piece by piece on the host. Everything is summed in float64 over blocks of a fixed number of entries,
and the blocks are added with one rounding (`math.fsum`), so a figure does not depend on how the files are cut up.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import math
import os
import pathlib
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from clinmerge_jax.checkpoint.digest import FileDigest
from clinmerge_jax.checkpoint.folder import Checkpoint
from clinmerge_jax.checkpoint.safetensors import TensorEntry, read_into
from clinmerge_jax.errors import BadInput
from clinmerge_jax.merging.diagnostics import module_of
from clinmerge_jax.merging.methods import COLLINEAR_COSINE, PairTotals
from clinmerge_jax.merging.schedule import layer_of

BLOCK = 1 << 17  # entries that are summed at once; no figure depends on larger pieces
PIECE_BYTES = 16 << 20  # of one model, read at once
HELD_BYTES = 256 << 20  # of all models of one tensor that is kept for the second pass instead of being read again
_WORKERS = 2  # beside the thread that reads and digests; each has one piece of every model

# The cosine of two weight matrices of one training run and its descendants stays near 1; that of matrices from two
# random starts is near 0, with a standard deviation of 1 / sqrt(entries) (as is that of a model and a copy with its
# neurons in another order). Norm weights say nothing: all lie near 1.
FAMILY_COSINE = 0.5  # median over the layers' matrices from which two models count as one family
UNRELATED_COSINE = 0.1  # below it they count as unrelated; between the two it is doubtful
_MARGIN = 1.05  # distances within 5 % of each other count as equal

_SHORT_MODULES = {
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.o_proj": "o",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
    "input_layernorm": "norms",
    "post_attention_layernorm": "norms",
}
_OUTSIDE = ("embed_tokens", "norm", "lm_head")  # of the layers

Pair = tuple[str, str]  # (B, A): B as seen from A
PARENTS: Pair = ("clinical", "instruct")
FROM_BASE: tuple[Pair, Pair] = (("clinical", "base"), ("instruct", "base"))


def pairs_of(roles: Iterable[str]) -> tuple[Pair, ...]:
    """The pairs that are compared: the parents, and each with the base where `roles` has one."""
    return (PARENTS, *FROM_BASE) if "base" in roles else (PARENTS,)


def pair_name(pair: Pair) -> str:
    """`clinical vs instruct`."""
    return f"{pair[0]} vs {pair[1]}"


@dataclasses.dataclass(frozen=True)
class PairMeasures:
    """How B differs from A, over one tensor or several laid end to end.

    Attributes:
      totals: |A|^2, |B|^2 and |A - B|^2.
      entries: of the tensors.
      changed: entries that differ.
      top_squared: what of |A - B|^2 lies in the entries that differ most, a fixed share of each tensor's.
    """

    totals: PairTotals
    entries: int
    changed: int
    top_squared: float

    @property
    def relative_distance(self) -> float:
        """|B - A| / |A|; infinite where only A is zero."""
        return self.totals.relative_distance

    @property
    def cosine(self) -> float:
        """Of A and B."""
        return self.totals.cosine

    @property
    def degrees(self) -> float:
        """The angle between A and B, to full precision where it is small."""
        a, b = math.sqrt(self.totals.a_squared), math.sqrt(self.totals.b_squared)
        if a * b == 0.0:
            return math.degrees(math.acos(self.cosine))
        chord_squared = max(0.0, self.totals.difference_squared - (a - b) ** 2) / (a * b)
        return math.degrees(2 * math.asin(min(1.0, math.sqrt(chord_squared) / 2)))

    @property
    def z(self) -> float:
        """The cosine in standard deviations of what chance gives: 1 / sqrt(entries) for random directions."""
        return self.cosine * math.sqrt(self.entries)

    @property
    def top_share(self) -> float | None:
        """The share of the squared change that lies in the top entries; None where nothing changed."""
        if self.totals.difference_squared == 0.0:
            return None
        return min(1.0, self.top_squared / self.totals.difference_squared)


@dataclasses.dataclass(frozen=True)
class Measures:
    """All figures of one tensor, or of several laid end to end.

    Attributes:
      pairs: by pair, the parents first.
      tensors: how many.
      collinear: how many of them slerp merges along the straight line, as linear does.
      signs_compared: with a base, entries that both parents changed; without, entries in which both are not zero.
      signs_agree: those of them in which the two changes, or the two weights, have the same sign.
    """

    pairs: Mapping[Pair, PairMeasures]
    tensors: int
    collinear: int
    signs_compared: int
    signs_agree: int

    @property
    def entries(self) -> int:
        """Entries."""
        return self.pairs[PARENTS].entries

    @property
    def sign_agreement(self) -> float | None:
        """The share of equal signs; None where none could be compared."""
        return self.signs_agree / self.signs_compared if self.signs_compared else None

    @property
    def _changes(self) -> PairTotals | None:
        """Of the two changes from the base: they differ by clinical - instruct."""
        if len(self.pairs) == 1:
            return None
        squared = [self.pairs[pair].totals.difference_squared for pair in (*FROM_BASE, PARENTS)]
        return PairTotals(*squared) if squared[0] and squared[1] else None

    @property
    def change_cosine(self) -> float | None:
        """Of clinical - base and instruct - base; None without a base or where one of them is zero."""
        return self._changes.cosine if self._changes else None

    @property
    def carried(self) -> float | None:
        """The part of instruct's change that clinical has too: <C, I> / |I|^2 for changes C, I; None as above."""
        changes = self._changes
        return changes.cosine * math.sqrt(changes.a_squared / changes.b_squared) if changes else None

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable record; what is not defined or infinite is None."""
        record: dict[str, Any] = {
            "entries": self.entries,
            "pairs": {
                pair_name(pair): {
                    "relative_distance": one.relative_distance if math.isfinite(one.relative_distance) else None,
                    "cosine": one.cosine,
                    "z": one.z,
                    "collinear": one.totals.collinear,
                    "changed": one.changed,
                    "top_share": one.top_share,
                }
                for pair, one in self.pairs.items()
            },
        }
        cosine = self.change_cosine
        if len(self.pairs) > 1:
            record["change_cosine"] = cosine
            record["change_z"] = None if cosine is None else cosine * math.sqrt(self.entries)
        return {**record, "sign_agreement": self.sign_agreement, "signs_compared": self.signs_compared}


def combine(measures: Iterable[Measures]) -> Measures:
    """The figures of tensors laid end to end.

    Args:
      measures: at least one, all of the same models.
    """
    measures = list(measures)
    pairs = {}
    for pair in measures[0].pairs:
        parts = [one.pairs[pair] for one in measures]
        columns = zip(*(dataclasses.astuple(part.totals) for part in parts))
        pairs[pair] = PairMeasures(
            totals=PairTotals(*map(math.fsum, columns)),
            entries=sum(part.entries for part in parts),
            changed=sum(part.changed for part in parts),
            top_squared=math.fsum(part.top_squared for part in parts),
        )
    return Measures(
        pairs,
        tensors=sum(one.tensors for one in measures),
        collinear=sum(one.collinear for one in measures),
        signs_compared=sum(one.signs_compared for one in measures),
        signs_agree=sum(one.signs_agree for one in measures),
    )


@dataclasses.dataclass(frozen=True)
class TensorInspection:
    """The figures of one tensor."""

    name: str
    shape: tuple[int, ...]
    measures: Measures

    @property
    def layer(self) -> int | None:
        """Its layer; None for embeddings, the final norm and the head."""
        return layer_of(self.name)

    @property
    def module(self) -> str:
        """`q`, `gate`, `norms`, ... in the layers of a Llama, the module's own name elsewhere."""
        module = module_of(self.name)
        return module if self.layer is None else _SHORT_MODULES.get(module, module)

    @property
    def is_layer_matrix(self) -> bool:
        """Whether it takes part in the verdict: norms, biases and embeddings do not."""
        return self.layer is not None and len(self.shape) == 2

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable record."""
        place = {"name": self.name, "module": self.module, "layer": self.layer, "shape": list(self.shape)}
        return {**place, **self.measures.to_json()}


def in_display_order(inspections: Iterable[TensorInspection]) -> list[TensorInspection]:
    """q, k, v, o, gate, up, down, norms, what else layers hold; then embeddings, final norm, head, and the rest."""
    order = [*dict.fromkeys(_SHORT_MODULES.values()), *_OUTSIDE]

    def key(one: TensorInspection) -> tuple[bool, int]:
        return one.layer is None, order.index(one.module) if one.module in order else len(order)

    return sorted(inspections, key=key)


def group(inspections: Iterable[TensorInspection], by: Callable[[TensorInspection], Any]) -> dict[Any, Measures]:
    """The figures of each group of tensors, in order of first appearance."""
    groups: dict[Any, list[Measures]] = {}
    for one in inspections:
        groups.setdefault(by(one), []).append(one.measures)
    return {key: combine(members) for key, members in groups.items()}


def common_tensors(models: Mapping[str, Checkpoint]) -> tuple[list[str], list[str]]:
    """What can be compared.

    Args:
      models: by role.

    Returns:
      The tensors that all models have in the same shape, in the order of the first; and a line for each other one.

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
            f"{labels}: share no matrix of a layer by name and shape, so there is nothing to compare; give models of"
            " one architecture and size"
        )
    return common, others


_HALF_BITS = 16  # of a float32's bits, found by each of the two passes
_HALF = 1 << _HALF_BITS


def _magnitude_bits(difference: np.ndarray) -> np.ndarray:
    """float64 differences rounded to float32 magnitudes, as uint32 that order like them."""
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
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite shows in the sums, and is refused there
        for values in _blocks(piece):
            row = [np.sum(x * x) for x in values]
            differences = [values[b] - values[a] for b, a in pairs]
            for index, difference in enumerate(differences):
                row.append(np.sum(difference * difference))
                counts[index] += np.count_nonzero(difference)
                high = _magnitude_bits(difference) >> np.uint32(_HALF_BITS)
                histograms[index] += np.bincount(high, minlength=_HALF)
            one, two = differences[1:] if len(pairs) > 1 else values
            product = one * two  # of two float32 differences it cannot vanish or overflow
            counts[-2] += np.count_nonzero(product)
            counts[-1] += np.count_nonzero(product > 0)
            sums.append(row)
    return np.array(sums), counts, histograms


def _second_pass(
    piece: Sequence[np.ndarray], pairs: Sequence[tuple[int, int]], bins: Sequence[int | None]
) -> tuple[list[list[float]], np.ndarray]:
    """Per pair, the squares above a bin of the histogram by block, and the counts within the bin."""
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


def _from_top(counts: np.ndarray, k: int) -> tuple[int, int]:
    """The bin that holds the k-th entry counted from the last bin down, and its place within the bin from 1."""
    reached = np.cumsum(counts[::-1])
    place = int(np.searchsorted(reached, k))
    return len(counts) - 1 - place, k - (int(reached[place - 1]) if place else 0)


def _top_squared(chosen: int, above: Sequence[float], within: np.ndarray, wanted: int) -> float:
    """The squares above a bin and of the `wanted` largest in it, whose values its counts give exactly."""
    bits = np.uint32(chosen << _HALF_BITS) + np.arange(_HALF, dtype=np.uint32)
    last, at_last = _from_top(within, wanted)
    taken = np.where(np.arange(_HALF) > last, within, 0)
    taken[last] = at_last
    held = np.flatnonzero(taken)
    squares = np.square(bits[held].view(np.float32).astype(np.float64))
    return math.fsum([*above, *(taken[held] * squares)])


class _Files:
    """Reads flat ranges of tensors, and digests what is read in the files' own order."""

    def __init__(self, models: Mapping[str, Checkpoint]):
        self._stack = contextlib.ExitStack()
        self._descriptors: dict[pathlib.Path, int] = {}
        self.digests = {path: FileDigest(path) for checkpoint in models.values() for path in checkpoint.files}

    def __enter__(self) -> "_Files":
        for path, digest in self.digests.items():
            self._descriptors[path] = os.open(path, os.O_RDONLY)
            self._stack.callback(os.close, self._descriptors[path])
            digest.read_header()
        return self

    def __exit__(self, *_) -> None:
        self._stack.close()

    def read(self, entry: TensorEntry, start: int, count: int) -> np.ndarray:
        """`count` entries of a tensor, flat, from entry `start` on."""
        buffer = np.empty(count * entry.dtype.itemsize, np.uint8)
        offset = entry.offset + start * entry.dtype.itemsize
        read_into(self._descriptors[entry.file], offset, memoryview(buffer), entry.file)
        self.digests[entry.file].update(offset, memoryview(buffer))
        return buffer.view(entry.dtype)


def _in_order(pool: concurrent.futures.Executor, function: Callable, items: Iterable) -> Iterator:
    """Like `pool.map`, but takes an item only when there is a worker for it."""
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
      models: "clinical", "instruct" and perhaps "base".
      names: of tensors that all of them have in one shape.
      top: percent of a tensor's entries, over 0 to 100, whose share of the squared change is wanted: rounded, at least
        one entry. Entries are ranked by the magnitude of their change in float32.
      progress: called with the bytes of tensors measured since the last call.
      piece_bytes: of one model in one piece.
      held_bytes: the most that one tensor of all models may take in memory between the passes.

    Returns:
      Per tensor the figures; and the SHA-256 of every weight file by its path.

    Raises:
      BadInput: a tensor holds values that are not finite.
    """
    inspections = []
    with _Files(models) as files, concurrent.futures.ThreadPoolExecutor(_WORKERS) as pool:
        for name in names:
            entries = {role: checkpoint.tensors[name] for role, checkpoint in models.items()}
            inspections.append(_inspect(entries, top, files, pool, piece_bytes, held_bytes))
            progress(sum(entry.nbytes for entry in entries.values()))
        jobs = {path: pool.submit(digest.finish) for path, digest in files.digests.items()}
        return inspections, {str(path): job.result() for path, job in jobs.items()}


def _inspect(
    entries: Mapping[str, TensorEntry],
    top: float,
    files: _Files,
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
            yield [files.read(entry, start, min(step, size - start)) for entry in entries.values()]

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
    wanted = {pair: _from_top(histograms[index], k) for index, pair in enumerate(pairs) if changes[pair] and k < size}
    tops = {pair: changes[pair] for pair in pairs}  # of all entries, or of none that changed
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


@dataclasses.dataclass(frozen=True)
class Lineage:
    """Whether the models descend from one another, by the matrices of their layers.

    Attributes:
      matrices: the figures of all of them laid end to end.
      medians: by pair, the median cosine of one matrix.
    """

    matrices: Measures
    medians: Mapping[Pair, float]

    def verdict(self, pair: Pair) -> str:
        """`one family`, `doubtful` or `unrelated`, by the median cosine and the two thresholds above."""
        median = self.medians[pair]
        if median >= FAMILY_COSINE:
            return "one family"
        return "doubtful" if median >= UNRELATED_COSINE else "unrelated"

    @property
    def has_base(self) -> bool:
        """Whether there is a third model."""
        return len(self.medians) > 1

    @property
    def nearer(self) -> str | None:
        """`base`, `instruct` or `neither`: what clinical is nearer to; None without a base of the same family."""
        if not self.has_base or any(self.verdict(pair) != "one family" for pair in self.medians):
            return None
        to_base, to_instruct = (self.matrices.pairs[pair].relative_distance for pair in (FROM_BASE[0], PARENTS))
        if to_base * _MARGIN < to_instruct:
            return "base"
        return "instruct" if to_instruct * _MARGIN < to_base else "neither"

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable record."""
        return {
            "verdicts": {pair_name(pair): self.verdict(pair) for pair in self.medians},
            "median_cosines": {pair_name(pair): median for pair, median in self.medians.items()},
            "clinical_is_nearer_to": self.nearer,
            "instruct_change_carried_by_clinical": self.matrices.carried,
            **self.matrices.to_json(),
        }

    def text(self) -> str:
        """The verdict in one paragraph, with its numbers."""
        parts = [self._relation(pair) for pair in self.medians]
        nearer = self.nearer
        if not self.has_base and self.verdict(PARENTS) == "one family":
            parts.append("To see what clinical was trained from, give the base of both as config.base.")
        if nearer is not None:
            parts.append(self._nearness(nearer))
        return " ".join(parts)

    def _relation(self, pair: Pair) -> str:
        verdict, one = self.verdict(pair), self.matrices.pairs[pair]
        b, a = pair
        said = {
            "one family": f"{b} and {a} are of one family",
            "doubtful": f"Whether {b} and {a} descend from one model is doubtful",
            "unrelated": f"{b} and {a} look unrelated, trained from different random starts",
        }[verdict]
        means = {
            "one family": "",
            "doubtful": " Evaluate a merge of them before trusting it.",
            "unrelated": " Merging their weights would be meaningless.",
        }[verdict]
        return (
            f"{said[0].upper()}{said[1:]}: the median cosine of {self.matrices.tensors} layer matrices is"
            f" {self.medians[pair]:.4f}, and over all of them it is {one.cosine:.4f} (chance gives 0 with standard"
            f" deviation {1 / math.sqrt(one.entries):.1g}: z = {one.z:.1f}); relative distance"
            f" {one.relative_distance:.4f}.{means}"
        )

    def _nearness(self, nearer: str) -> str:
        to_base, to_instruct = (self.matrices.pairs[pair].relative_distance for pair in (FROM_BASE[0], PARENTS))
        numbers = f"(relative distances {to_base:.4f} to base, {to_instruct:.4f} to instruct)"
        cosine, carried = self.matrices.change_cosine, self.matrices.carried
        said = {
            "base": f"clinical is nearer to base than to instruct {numbers}",
            "instruct": f"clinical is nearer to instruct than to base {numbers}",
            "neither": f"clinical is about as far from base as from instruct {numbers}",
        }[nearer]
        if cosine is None:
            return f"{said[0].upper()}{said[1:]}; one of the two has not changed from the base at all."
        reading = {
            "base": "as if it had been trained from the base and not from instruct",
            "instruct": "as if it had been trained from instruct, or instruct from it",
            "neither": "which does not tell what it was trained from",
        }[nearer]
        return (
            f"{said[0].upper()}{said[1:]}, {reading}; the two changes from the base have cosine {cosine:.4f}, and"
            f" clinical carries {carried:.0%} of instruct's."
        )


def lineage(inspections: Iterable[TensorInspection]) -> Lineage:
    """The verdict on tensors of which at least one is a matrix of a layer."""
    matrices = [one.measures for one in inspections if one.is_layer_matrix]
    medians = {pair: statistics.median(one.pairs[pair].cosine for one in matrices) for pair in matrices[0].pairs}
    return Lineage(combine(matrices), medians)


def normal_top_share(top: float) -> float:
    """What the top entries hold of the squares of a normal distribution, for comparison.

    Args:
      top: percent, over 0 to 100.
    """
    share = top / 100
    if share >= 1:
        return 1.0
    normal = statistics.NormalDist()
    z = normal.inv_cdf(1 - share / 2)
    return share + 2 * z * normal.pdf(z)


def advice(found: Lineage, all_tensors: Measures, top: float) -> list[str]:
    """Rules of thumb about the method, each with the number behind it.

    Args:
      found: the verdict; its figures are those of the layers' matrices.
      all_tensors: the figures of everything that was compared.
      top: the percent that `top_share` stands for.
    """
    matrices, parents = found.matrices, found.verdict(PARENTS)
    if parents != "one family":
        return [
            f"Do not expect a merge to work: the parents are {parents} (median cosine {found.medians[PARENTS]:.4f});"
            " look for a clinical and an instruct model of one base."
        ]
    if all_tensors.pairs[PARENTS].totals.difference_squared == 0.0:
        return ["There is nothing to merge: the parents are equal in every entry that was compared."]
    lines = [_on_slerp(all_tensors)]
    related = found.has_base and all(found.verdict(pair) == "one family" for pair in FROM_BASE)
    if related and matrices.change_cosine is not None:
        lines.append(_on_sums(matrices.change_cosine))
        lines.append(_on_signs(matrices.sign_agreement))
        changes = [("clinical's", matrices.pairs[FROM_BASE[0]]), ("instruct's", matrices.pairs[FROM_BASE[1]])]
    else:
        if not found.has_base:
            lines.append("Task arithmetic, ties, dare and della count changes from a base: none was given.")
        elif not related:
            lines.append("Task arithmetic, ties, dare and della would count changes from a base that is no ancestor.")
        changes = [("the", matrices.pairs[PARENTS])]
    for whose, one in changes:
        if one.top_share is not None:
            lines.append(_on_sparsity(whose, one.top_share, top))
    return lines


def _on_slerp(measures: Measures) -> str:
    counted = f"{measures.collinear} of {measures.tensors} tensors have a cosine beyond {COLLINEAR_COSINE}"
    if measures.collinear == measures.tensors:
        return f"slerp and linear give the same result: {counted}."
    if 2 * measures.collinear >= measures.tensors:
        return f"slerp and linear differ in the other tensors only: {counted}."
    return f"slerp keeps the norm where linear shrinks it, and the two can differ: only {counted}."


def _on_sums(cosine: float) -> str:
    said = f"the two changes have cosine {cosine:.4f}"
    if abs(cosine) < 0.1:
        return f"Task arithmetic adds both changes without much interference: {said}, nearly orthogonal."
    if cosine >= 0.5:
        return f"Task arithmetic with full weights would count what is shared twice: {said}; let the weights sum to 1."
    if cosine > 0:
        return f"The changes overlap in part: {said}; weights that sum to 1 are the safer start for task arithmetic."
    return f"The changes oppose each other: {said}; a sum cancels, so compare ties or sce with it."


def _on_signs(agreement: float) -> str:
    said = f"where both parents changed an entry, {agreement:.1%} of the signs agree"
    if agreement < 0.45:
        return f"ties and sce are worth trying: {said}, fewer than chance, so plain sums cancel much."
    if agreement <= 0.55:
        return f"ties and sce, which settle conflicts of sign, have much to settle: {said}, as chance would have it."
    if agreement < 0.75:
        return f"ties and sce have some conflicts of sign to settle: {said}."
    return f"ties and sce have few conflicts of sign to settle: {said}."


def _on_sparsity(whose: str, share: float, top: float) -> str:
    said = f"the top {top:g} % of entries hold {share:.1%} of {whose} squared change"
    said += f" (a normal distribution: {normal_top_share(top):.1%})"
    if share >= 0.5:
        return f"Sparse methods (ties, breadcrumbs at a low density) keep most: {said}."
    return f"The change is spread out, so ties and breadcrumbs need a higher density than {top / 100:g}: {said}."
