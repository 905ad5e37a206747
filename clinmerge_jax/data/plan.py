"""Plan the batch shapes of a run: few shapes, since each is a program to compile, and little padding.

A plan depends only on the sequence lengths and the order of the steps, never on timings. So a resumed run, every
process of a run, and every run of a grid have the same batches.
"""

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from clinmerge_jax.data.batch import Batch
from clinmerge_jax.data.packing import best_fit
from clinmerge_jax.data.sequences import Sequences

PROGRAMS = 4  # maximum number of batch shapes of a run


@dataclasses.dataclass(frozen=True, order=True)
class Shape:
    """A batch shape: the number of rows over all micro-batches, and the tokens of each row."""

    rows: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.rows:,} x {self.tokens:,}"


def _rounded_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class Rules:
    """Constraints on batch shapes, and their cost model.

    Attributes:
      longest: the maximum number of tokens of a row.
      unit: row lengths are multiples of this number of tokens, except `longest` itself.
      parts: the number of shards that the mesh makes of a micro-batch's rows.
      micro_batch: rows of a micro-batch, a multiple of `parts`; 0 derives it from `at_a_time`.
      at_a_time: the approximate number of tokens per micro-batch and part; 0 makes all rows one micro-batch.
      alone: each sequence has a row of its own.
      skips: empty micro-batches are skipped and cost nothing.
      pair: the cost of attention between two tokens, relative to all other work on one token.
    """

    longest: int
    unit: int = 64
    parts: int = 1
    micro_batch: int = 0
    at_a_time: int = 0
    alone: bool = False
    skips: bool = True
    pair: float = 0.0

    def lengths(self, least: int) -> list[int]:
        """The allowed row lengths that hold a sequence of `least` tokens, ascending; about eleven per doubling."""
        found, tokens = [], self._up(least)
        while tokens < self.longest:
            found.append(tokens)
            tokens = self._up(tokens + max(1, tokens // 16))
        return [*found, self.longest]

    def _up(self, tokens: int) -> int:
        return _rounded_up(tokens, self.unit)

    def rows(self, sizes: Sequence[int], tokens: int) -> list[list[int]] | None:
        """The sequences of each row of `tokens` tokens; None if the longest sequence does not fit."""
        if max(sizes) > tokens:
            return None
        return [[index] for index in range(len(sizes))] if self.alone else best_fit(sizes, tokens)

    def micro_batch_of(self, rows: int, tokens: int) -> int:
        """Rows of a micro-batch for a step with `rows` rows of `tokens` tokens; all of them if they are few."""
        if self.micro_batch:
            return self.micro_batch
        all_rows = _rounded_up(rows, self.parts)
        return min(all_rows, max(1, self.at_a_time // tokens) * self.parts) if self.at_a_time else all_rows

    def shape(self, rows: int, tokens: int) -> Shape:
        """The smallest allowed shape that holds this many rows."""
        return Shape(_rounded_up(rows, self.micro_batch_of(rows, tokens)), tokens)

    def computed(self, rows: int, shape: Shape) -> Shape:
        """The part of a batch of this shape that is computed if `rows` of its rows are not empty."""
        if not self.skips:
            return shape
        return Shape(_rounded_up(rows, self.micro_batch_of(shape.rows, shape.tokens)), shape.tokens)

    def cost(self, shape: Shape) -> float:
        """The cost of computing a shape, in units of one token without attention."""
        return shape.rows * shape.tokens * (1.0 + self.pair * shape.tokens)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The batch shapes of a run.

    Attributes:
      shapes: the available shapes; each step uses the cheapest that holds it.
      rules: the constraints and cost model of the shapes.
    """

    shapes: tuple[Shape, ...]
    rules: Rules

    def rows(self, sizes: Sequence[int]) -> tuple[Shape, list[list[int]]]:
        """The shape of a step whose sequences have these sizes, and the sequences of each row.

        Raises:
          ValueError: no shape holds the step.
        """
        found = [(shape, self.rules.rows(sizes, shape.tokens)) for shape in self.shapes]
        fitting = [(shape, rows) for shape, rows in found if rows is not None and len(rows) <= shape.rows]
        if not fitting:
            raise ValueError(f"none of the planned shapes holds {len(sizes)} sequences of up to {max(sizes)} tokens")
        return min(fitting, key=lambda pair: self.rules.cost(self.rules.computed(len(pair[1]), pair[0])))

    def batch(self, sequences: Sequences, chosen: np.ndarray) -> Batch:
        """The batch of a step, [A, B, T], with empty rows last.

        Args:
          sequences: all sequences of the run.
          chosen: the numbers of the step's sequences.
        """
        shape, rows = self.rows([int(size) for size in sequences.sizes[chosen]])
        members = [[int(chosen[index]) for index in row] for row in rows]
        batch = sequences.batch(members, (shape.rows, shape.tokens))
        at_a_time = self.rules.micro_batch_of(shape.rows, shape.tokens)
        arrays = {name: values.reshape(-1, at_a_time, shape.tokens) for name, values in vars(batch).items()}
        return Batch(**arrays)

    def describe(self, steps: Sequence[Sequence[int]]) -> str:
        """Describes the shapes that the given steps use and their share of padding; a step is its sequence sizes."""
        taken = [self.rows(sizes) for sizes in steps]
        counts = collections.Counter(shape for shape, _ in taken)
        shown = ", ".join(f"{shape} tokens ({counts[shape]:,})" for shape in self.shapes if counts[shape])
        computed = [self.rules.computed(len(rows), shape) for shape, rows in taken]
        filled = sum(map(sum, steps)) / sum(shape.rows * shape.tokens for shape in computed)
        return f"rows x tokens (steps): {shown}; {filled:.1%} of the computed tokens are not padding"


def make_plan(
    steps: Sequence[Sequence[int]],
    rules: Rules,
    charge: float,
    programs: int = PROGRAMS,
    further: Shape | None = None,
) -> Plan:
    """Chooses shapes by greedy search, minimising the cost of all steps plus a charge for each program.

    Starts with the cheapest shape that holds every step. Then adds, exchanges or removes one shape at a time as long as
    that lowers the total.

    Args:
      steps: the sequence sizes of each step; at least one step.
      rules: constraints on the shapes, and their cost model.
      charge: the cost of compiling one more program, in the units of `Rules.cost`.
      programs: the maximum number of shapes.
      further: a shape that must be included, because it holds further steps that are not known here.
    """
    least = max(map(max, steps))
    lengths = {*rules.lengths(min(map(max, steps))), rules.lengths(least)[0], *([further.tokens] if further else [])}
    found: dict[int, np.ndarray] = {}  # rows that each step needs, by row length
    for tokens in sorted(lengths):
        needed = [rules.rows(sizes, tokens) for sizes in steps]
        found[tokens] = np.array([np.inf if rows is None else len(rows) for rows in needed])
    shapes = {
        rules.shape(int(rows), tokens) for tokens, needed in found.items() for rows in set(needed[np.isfinite(needed)])
    }
    everything = {rules.shape(int(needed.max()), tokens) for tokens, needed in found.items() if tokens >= least}
    if further:
        everything = {further}
    known = sorted(shapes | everything, key=lambda shape: (rules.cost(shape), shape))
    costs = np.full((len(known), len(steps)), np.inf)
    for number, shape in enumerate(known):
        needed = found[shape.tokens]
        for rows in set(needed[needed <= shape.rows]):
            costs[number, needed == rows] = rules.cost(rules.computed(int(rows), shape))

    def total(chosen: list[int]) -> float:
        return float(costs[chosen].min(axis=0).sum()) + charge * len(chosen)

    required = [known.index(shape) for shape in sorted(everything)]
    start = min(required, key=lambda index: total([index]))
    chosen = [start]
    while True:
        kept = [start] if further else []
        offers = [[*chosen, one] for one in range(len(known)) if one not in chosen and len(chosen) < programs]
        for leaving in chosen:
            if leaving not in kept:
                rest = [one for one in chosen if one != leaving]
                offers += [[*rest, one] for one in range(len(known)) if one not in chosen] + ([rest] if rest else [])
        best = min(offers, key=total, default=chosen)
        if total(best) >= total(chosen):
            break
        chosen = best
    return Plan(tuple(known[index] for index in sorted(chosen)), rules)
