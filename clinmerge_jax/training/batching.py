"""Assign sequences to steps, and plan the batch shapes for the device at hand."""

import dataclasses
from collections.abc import Sequence

import grain
import numpy as np

from clinmerge_jax.data.loader import order
from clinmerge_jax.data.plan import PROGRAMS, Plan, Rules, make_plan
from clinmerge_jax.data.sequences import Sequences, joined
from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.attention import Backend
from clinmerge_jax.parallel.layout import Layout
from clinmerge_jax.training.flops import step_flops
from clinmerge_jax.training.step import StepSettings

_LOOKED_AT = 32_768  # maximum number of sequences used to plan the shapes


@dataclasses.dataclass(frozen=True)
class _Device:
    """Planning constants of a kind of device.

    Attributes:
      unit: row lengths are multiples of this number of tokens.
      at_a_time: tokens of a micro-batch; 0 for all of a step.
      compiling: the number of operations that the device computes in the time it takes to compile a program.
    """

    unit: int
    at_a_time: int
    compiling: float


_CPU, _ACCELERATOR = _Device(64, 1024, 5e11), _Device(128, 0, 5e15)
_PAIRS = 2.0  # cost of an attention operation relative to one of a product with weights


@dataclasses.dataclass(frozen=True)
class Batching:
    """How a step takes sequences and puts them into rows.

    Attributes:
      batch_size: sequences per step, over all processes.
      micro_batch: rows computed at a time. 0 means all rows of a step, or on CPUs rows of about 1,024 tokens together:
        more are not faster there, and empty micro-batches can be skipped.
      replay: further sequences to mix in.
      replay_share: the share of replayed sequences in each step.
      length: the maximum number of tokens of a row; 0 for the length of the longest sequence.
      alone: whether each sequence has a row of its own, as is always the case if the attention kernel does not support
        segments.

    Raises:
      BadInput: a number is out of range.
    """

    batch_size: int
    micro_batch: int = 0
    replay: Sequences | None = None
    replay_share: float = 0.0
    length: int = 0
    alone: bool = False

    def __post_init__(self):
        if self.batch_size < 1:
            raise BadInput(f"config.batch_size: is {self.batch_size}; give 1 or more")
        if self.micro_batch < 0:
            raise BadInput(f"config.micro_batch: is {self.micro_batch}; give 1 or more, or 0 for all rows at once")
        if self.replay is not None and not 0 < self.replay_share < 1:
            raise BadInput(f"config.replay.share: is {self.replay_share}; give a share between 0 and 1")


@dataclasses.dataclass(frozen=True)
class Course:
    """The sequences of a run in training order.

    Attributes:
      sequences: the sequences to learn, followed by those to replay.
      numbers: the sequence numbers in training order.
      steps: the number of steps.
      batch_size: sequences per step.
    """

    sequences: Sequences
    numbers: grain.MapDataset[int]
    steps: int
    batch_size: int

    def sizes(self, steps: int) -> list[list[int]]:
        """The sequence sizes of the first steps, at most `steps` of them."""
        found = self.sequences.sizes
        batches = self.numbers.batch(self.batch_size)
        return [found[batches[step]].tolist() for step in range(min(steps, self.steps))]


def course(data: Sequences, rows: Batching, steps: int, seed: int) -> Course:
    """Makes the course of a run that learns `data`."""
    everything = data if rows.replay is None else joined(data, rows.replay)
    replayed = 0 if rows.replay is None else len(rows.replay)
    return Course(everything, order(len(data), seed, replayed, rows.replay_share), steps, rows.batch_size)


def plan_courses(
    courses: Sequence[Course], rows: Batching, layout: Layout, settings: StepSettings, *, together: bool = False
) -> tuple[Plan, str]:
    """Plans the batch shapes of one or several runs, and describes them in one line.

    If the runs have very many steps, the shapes are planned from the first ones, and a shape that holds any step is
    added.

    Args:
      courses: the runs.
      rows: how the runs take their sequences.
      layout: the model's layout on the mesh.
      settings: the settings of the steps.
      together: whether the runs share one program. Then there is one shape, and no run can skip what another computes.

    Raises:
      BadInput: the mesh does not divide micro-batches evenly.
    """
    each = max(1, _LOOKED_AT // (len(courses) * rows.batch_size))
    steps = [sizes for one in courses for sizes in one.sizes(each)]
    unknown = any(one.steps > each for one in courses)
    longest = max(int(one.sequences.sizes.max()) for one in courses)
    programs = 1 if together else PROGRAMS
    plan = _plan(steps, longest, rows, layout, settings, programs, unknown, skips=not together)
    return plan, plan.describe(steps)


def plan_groups(
    data: Sequences, rows: Batching, layout: Layout, settings: StepSettings
) -> tuple[Plan, list[np.ndarray]]:
    """Plans batches that contain every sequence once, grouped by similar length; returns the plan and the groups."""
    by_size = np.argsort(-data.sizes, kind="stable")
    groups = [by_size[start : start + rows.batch_size] for start in range(0, len(data), rows.batch_size)]
    sizes = [data.sizes[group].tolist() for group in groups]
    return _plan(sizes, int(data.sizes.max()), rows, layout, settings), groups


def _plan(
    steps: Sequence[Sequence[int]],
    longest: int,
    rows: Batching,
    layout: Layout,
    settings: StepSettings,
    programs: int = PROGRAMS,
    unknown: bool = False,
    skips: bool = True,
) -> Plan:
    parts, platform, config = layout.parts("batch"), layout.device.platform, layout.config
    if rows.micro_batch % parts:
        raise BadInput(
            f"config.micro_batch: {rows.micro_batch} rows cannot be cut into the mesh's {parts} parts; give a multiple"
        )
    device = _CPU if platform == "cpu" else _ACCELERATOR
    token, pair = (step_flops(config, *one, frozen=settings.lora is not None) for one in ((1, 0), (0, 1)))
    rules = Rules(
        longest=max(rows.length, longest),
        unit=device.unit,
        parts=parts,
        micro_batch=rows.micro_batch,
        at_a_time=device.at_a_time if skips else 0,
        alone=rows.alone or settings.attention is Backend.CUDNN,
        skips=skips,
        pair=_PAIRS * pair / token,
    )
    further = rules.shape(rows.batch_size, rules.lengths(longest)[0]) if unknown else None
    return make_plan(steps, rules, device.compiling / token, programs, further)
