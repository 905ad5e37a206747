"""The streaming engine: merges checkpoints of any size piece by piece, in bounded memory.

One thread per input reads pieces (whole rows) and digests them; the calling thread computes on JAX's
default device; one thread writes. A tensor whose method needs several passes stays on the device
between the passes if it fits, and is read again for each pass if not.
"""

import concurrent.futures
import dataclasses
import functools
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clinmerge_jax.checkpoint.digest import FileDigest, finish_all
from clinmerge_jax.checkpoint.formats.safetensors import header_bytes
from clinmerge_jax.checkpoint.output import OutputFolder
from clinmerge_jax.merging.diagnostics import TensorDifference
from clinmerge_jax.merging.engines.counting import count_on_device, count_on_host
from clinmerge_jax.merging.methods import DIFFERENCES, Coefficients, Method, Reduction, order
from clinmerge_jax.merging.plan import MergePlan, PlannedTensor, overflow
from clinmerge_jax.merging.row_source import Files, RowSource

PIECE_BYTES = 16 << 20  # of one source; small enough for caches and bounded memory, large enough for fast reads
HELD_BYTES = 256 << 20  # of all sources of one tensor that is kept on the device between passes
_QUEUED_PIECES = 2


class _Stopped(Exception):
    """Raised in a thread when another thread of the engine has failed."""


class _Channel:
    """A bounded queue between two threads whose waits end when the engine stops."""

    def __init__(self, stop: threading.Event, size: int):
        self._stop = stop
        self._queue: queue.Queue = queue.Queue(size)

    def put(self, item: Any) -> None:
        while not self._stop.is_set():
            try:
                return self._queue.put(item, timeout=0.2)
            except queue.Full:
                continue
        raise _Stopped

    def get(self) -> Any:
        while not self._stop.is_set():
            try:
                return self._queue.get(timeout=0.2)
            except queue.Empty:
                continue
        raise _Stopped


class _Worker(threading.Thread):
    """A thread whose failure stops the engine; the thread that joins it raises the error again."""

    def __init__(self, work: Callable[[], None], stop: threading.Event, name: str):
        super().__init__(name=name, daemon=True)
        self._work = work
        self._stop_event = stop
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self._work()
        except _Stopped:
            pass
        except BaseException as error:  # raised again by the thread that joins
            self.error = error
            self._stop_event.set()


def _read_source(steps: Iterator[tuple[RowSource, int, int]], files: Files, channel: _Channel) -> None:
    """Reads pieces, given as (row source, first row, rows), in order and sends them as device arrays."""
    try:
        for source, first_row, rows in steps:
            # Each piece has its own buffer, because on CPUs the device array may share that memory.
            channel.put(jax.device_put(source.read(files, first_row, rows)))
    finally:
        files.close()


@dataclasses.dataclass(frozen=True)
class _EndOfShard:
    differences: list[TensorDifference]


def _write_shards(
    plan: MergePlan, todo: Sequence[str], output: OutputFolder, journal: dict, channel: _Channel, progress
) -> None:
    """Writes merged pieces in order; a finished file is synced, renamed and entered into the journal."""
    for file_name in todo:
        tensors = [plan.tensors[name] for name in plan.files[file_name]]
        ends = np.cumsum([tensor.nbytes for tensor in tensors])
        total = 0
        stored = plan.leading.naming.stored
        header = header_bytes((stored(tensor.name), tensor.dtype, tensor.shape) for tensor in tensors)
        with output.weight_file(file_name, header) as append:
            while not isinstance(item := channel.get(), _EndOfShard):
                values = np.asarray(item)
                if values.dtype == np.float16 and not np.isfinite(values).all():
                    raise overflow(tensors[int(np.searchsorted(ends, total, side="right"))].name)
                total += values.nbytes
                progress(append(values))
        journal[file_name] = [difference.to_json() for difference in item.differences]
        output.write_journal(journal)


class _Computation:
    """Merges one tensor after another from the pieces that the readers send.

    Args:
      plan: the merge.
      channels: pieces of each tensor's first, second, ... input.
      again: one per input; tells its reader whether to read a tensor that is not held once more.
      piece_bytes: as in `run_merge`.
      held_bytes: as in `run_merge`.
    """

    def __init__(
        self,
        channels: Sequence[_Channel],
        again: Sequence[_Channel],
        piece_bytes: int,
        held_bytes: int,
    ):
        self.channels = channels
        self.again = again
        self.piece_bytes = piece_bytes
        self.held_bytes = held_bytes
        self.pool = concurrent.futures.ThreadPoolExecutor()

    def pieces(self, tensor: PlannedTensor) -> list[tuple[int, int]]:
        """(first row, rows) of each piece; a piece has at least one row, however long that is."""
        columns, rows = tensor.spec.columns, tensor.spec.rows
        widest = max(one.rows.dtype.itemsize for one in tensor.inputs)
        step = max(1, self.piece_bytes // (columns * widest))
        return [(row, min(step, rows - row)) for row in range(0, rows, step)]

    def held(self, tensor: PlannedTensor) -> bool:
        """Whether the pieces are kept on the device for later passes instead of being read again."""
        row = [jax.ShapeDtypeStruct((1, tensor.spec.columns), jnp.float32)] * len(tensor.inputs)
        ranks = sum(one.dtype.itemsize for one in jax.eval_shape(lambda row: _rank(tensor.method.ranked(row)), row))
        values = sum(one.rows.dtype.itemsize for one in tensor.inputs)
        return tensor.size * (values + ranks) <= self.held_bytes

    def ranks(self, method: Method, piece: Sequence[jax.Array]) -> list[jax.Array]:
        """The ranks within rows that the method asks for (`Method.ranked`)."""
        arrays = _ranked_program(method, piece)
        if not arrays or not _on_cpu(arrays[0]):
            return _rank_program(arrays) if arrays else []
        return [jax.device_put(order.ranks_on_host(np.asarray(one), self.pool)) for one in arrays]

    def steps(self, tensor: PlannedTensor, position: int) -> Iterator[tuple[RowSource, int, int]]:
        """The reads of one input for this tensor, in the order `merge` needs them; runs in the reader's thread."""
        if position >= len(tensor.inputs):
            return
        source = tensor.inputs[position].rows
        while True:
            for first_row, rows in self.pieces(tensor):
                yield source, first_row, rows
            if self.held(tensor) or not self.again[position].get():
                return

    def merge(self, tensor: PlannedTensor, send: Callable[[jax.Array], None]) -> Callable[[], TensorDifference]:
        """Merges one tensor and sends its pieces in order.

        Returns:
          A function that waits for the totals and returns the tensor's record.
        """
        host_half = tensor.reductions()
        try:
            reduction = next(host_half)
        except StopIteration as done:  # no statistics needed: one pass does everything
            sums, passes = [], _Passes(self, tensor, keep=False)
            for (first_row, rows), piece, ranks in passes:
                sums.append(_reduce(DIFFERENCES, piece, first_row))
                send(_apply(tensor, [*piece, *ranks], first_row, rows, done.value))
            passes.end()
            coefficients = done.value
            return lambda: tensor.difference(tensor.pair(_rows(sums)), coefficients)
        pair, passes = None, _Passes(self, tensor, keep=self.held(tensor))
        while True:
            sums: list[jax.Array] = []
            answers = _Answers(reduction, tensor.spec.columns)
            for (first_row, rows), piece, ranks in passes:
                if pair is None:
                    sums.append(_reduce(DIFFERENCES, piece, first_row))
                if reduction is DIFFERENCES and pair is None:
                    answers.add(sums[-1])
                elif reduction.row is None:
                    answers.add(_reduce(reduction, [*piece, *ranks], first_row))
                elif first_row <= reduction.row < first_row + rows:
                    row = reduction.row - first_row
                    answers.add(_reduce(reduction, [part[row : row + 1] for part in (*piece, *ranks)], reduction.row))
            if pair is None:
                pair = tensor.pair(_rows(sums))
            try:
                reduction = host_half.send(answers.whole())
            except StopIteration as done:
                coefficients = done.value
                break
        for (first_row, rows), piece, ranks in passes:
            send(_apply(tensor, [*piece, *ranks], first_row, rows, coefficients))
        passes.end()
        return lambda: tensor.difference(pair, coefficients)


class _Answers:
    """Collects the answer to one reduction, piece by piece."""

    def __init__(self, reduction: Reduction, columns: int):
        self._reduction = reduction
        self._columns = columns
        self._bins = reduction.bins
        self._counts: np.ndarray | int = 0
        self._pieces: list = []

    def add(self, piece: Any) -> None:
        """Adds a piece's rows or codes; codes are counted while the device computes the next piece."""
        if self._reduction.column_scales:
            self._counts = self._counts + self._reduction.column_sums(np.asarray(piece), self._columns)
            return
        if self._bins and self._pieces:
            self._count(self._pieces.pop())
        self._pieces.append(piece)

    def whole(self) -> np.ndarray:
        """The whole answer: [R, K], with bins [K, bins], of column sums [K, C]."""
        if self._reduction.column_scales:
            return self._reduction.from_column_sums(self._counts)
        if not self._bins:
            return _rows(self._pieces)
        self._count(self._pieces.pop())
        return self._counts

    def _count(self, codes: Sequence[jax.Array]) -> None:
        if _on_cpu(codes[0]):
            counts = np.stack([count_on_host(np.asarray(one), self._bins) for one in codes])
        else:
            counts = np.asarray(_count_program(codes, self._bins, _platform(codes[0]))).astype(np.int64)
        self._counts = self._counts + counts


def _platform(x: jax.Array) -> str:
    return next(iter(x.devices())).platform


def _on_cpu(x: jax.Array) -> bool:
    return _platform(x) == "cpu"


@functools.partial(jax.jit, static_argnums=(1, 2))
def _count_program(codes: Sequence[jax.Array], bins: int, platform: str) -> jax.Array:
    return jnp.stack([count_on_device(one, bins, platform) for one in codes])


@functools.partial(jax.jit, static_argnums=0)
def _ranked_program(method: Method, piece: Sequence[jax.Array]) -> list[jax.Array]:
    return method.ranked(piece)


def _rank(arrays: Sequence[jax.Array]) -> list[jax.Array]:
    return [order.ranks(one) for one in arrays]


_rank_program = jax.jit(_rank)


@functools.partial(jax.jit, static_argnums=0)
def _reduce_program(reduce: Callable, piece: Sequence[jax.Array], first_row: np.int32, args: dict) -> jax.Array:
    return reduce(piece, first_row, args)


def _reduce(reduction: Reduction, piece: Sequence[jax.Array], first_row: int) -> jax.Array:
    return _reduce_program(reduction.reduce, piece, np.int32(first_row), dict(reduction.args))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply_program(method: Method, dtype: np.dtype, *args) -> jax.Array:
    return method.apply(*args, dtype)


def _apply(
    tensor: PlannedTensor, piece: Sequence[jax.Array], first_row: int, rows: int, coefficients: Coefficients
) -> jax.Array:
    row_args = {key: value[first_row : first_row + rows] for key, value in coefficients.row_args.items()}
    return _apply_program(tensor.method, tensor.dtype, piece, np.int32(first_row), dict(coefficients.args), row_args)


def _rows(answers: Sequence[jax.Array]) -> np.ndarray:
    return np.concatenate([np.asarray(answer) for answer in answers])


class _Passes:
    """Iterates over one tensor any number of times: ((first row, rows), a piece of every input, ranks)."""

    def __init__(self, computation: _Computation, tensor: PlannedTensor, *, keep: bool):
        self._channels = computation.channels[: len(tensor.inputs)]
        self._again = [] if computation.held(tensor) else computation.again[: len(tensor.inputs)]
        self._where = computation.pieces(tensor)
        self._ranks = functools.partial(computation.ranks, tensor.method)
        self._keep = keep
        self._kept: list[tuple[list[jax.Array], list[jax.Array]]] = []
        self._begun = False

    def __iter__(self) -> Iterator[tuple[tuple[int, int], list[jax.Array], list[jax.Array]]]:
        if self._begun and self._keep:
            for where, kept in zip(self._where, self._kept):
                yield where, *kept
            return
        if self._begun:
            for channel in self._again:
                channel.put(True)
        self._begun = True
        for where in self._where:
            piece = [channel.get() for channel in self._channels]
            ranks = self._ranks(piece)
            if self._keep:
                self._kept.append((piece, ranks))
            yield where, piece, ranks

    def end(self) -> None:
        """Tells the readers to go on to the next tensor."""
        for channel in self._again:
            channel.put(False)


def run_merge(
    plan: MergePlan,
    output: OutputFolder,
    *,
    progress: Callable[[int], None] = lambda nbytes: None,
    piece_bytes: int = PIECE_BYTES,
    held_bytes: int = HELD_BYTES,
) -> tuple[list[TensorDifference], dict[str, str]]:
    """Merges into an open OutputFolder: weight files first, then tokenizer files, index and config.json.

    Weight files that an interrupted run finished are left as they are. The bits of the result do
    not depend on `piece_bytes` and `held_bytes`.

    Args:
      plan: from `plan_merge`.
      output: an open folder; the caller commits it.
      progress: called with the bytes written since the last call.
      piece_bytes: bytes of one source in one piece.
      held_bytes: maximum bytes that one tensor of all sources may take on the device between passes.

    Returns:
      Per tensor how the first two sources differ and the coefficients used; and the SHA-256 of every
      input weight file by its path.

    Raises:
      BadInput: a tensor holds values that are not finite, or float16 cannot hold the result.
      OSError: reading or writing failed; a rerun goes on from the last finished file.
    """
    journal = {name: records for name, records in output.read_journal().items() if output.path(name).is_file()}
    for file_name in journal:
        progress(sum(plan.tensors[name].nbytes for name in plan.files[file_name]))
    todo = [file_name for file_name in plan.files if file_name not in journal]
    ordered = [plan.tensors[name] for file_name in todo for name in plan.files[file_name]]

    stop = threading.Event()
    most = max(len(tensor.inputs) for tensor in plan.tensors.values())
    channels = [_Channel(stop, _QUEUED_PIECES) for _ in range(most)]
    again = [_Channel(stop, 1) for _ in range(most)]
    writing = _Channel(stop, _QUEUED_PIECES)
    computation = _Computation(channels, again, piece_bytes, held_bytes)
    paths = {path for model in plan.models.values() for path in model.checkpoint.files}
    digests = [{path: FileDigest(path) for path in paths} for _ in range(most)]

    def reader(index: int) -> Callable[[], None]:
        steps = (step for tensor in ordered for step in computation.steps(tensor, index))
        return lambda: _read_source(steps, Files(digests[index]), channels[index])

    workers = [_Worker(reader(index), stop, f"read input {index}") for index in range(most)]
    workers.append(
        _Worker(lambda: _write_shards(plan, todo, output, journal, writing, progress), stop, "write merged weights")
    )
    for worker in workers:
        worker.start()
    try:
        for file_name in todo:
            # Records are asked for last, so that waiting for totals does not delay the next tensor.
            pending = [computation.merge(plan.tensors[name], writing.put) for name in plan.files[file_name]]
            writing.put(_EndOfShard([record() for record in pending]))
    except _Stopped:
        pass  # the failed worker is found below
    except BaseException:
        stop.set()
        raise
    finally:
        for worker in workers:
            worker.join()
        computation.pool.shutdown()
    for worker in workers:
        if worker.error is not None:
            raise worker.error

    sha256 = finish_all(max((d[path] for d in digests), key=lambda d: d.position) for path in sorted(paths))
    plan.write_small_files(output)
    records = [TensorDifference.from_json(record) for name in plan.files for record in journal[name]]
    return records, sha256
