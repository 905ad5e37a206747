"""The streaming engine: merges Checkpoints piece by piece, in bounded memory, whatever their size.

One thread per source reads pieces (whole rows) and digests them; this thread computes on JAX's
default device; one thread writes. A tensor whose method needs totals of all of it first is kept on
the device between the two halves if it fits, and read twice if it does not.
"""

import dataclasses
import json
import os
import pathlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from clinmerge_jax.checkpoint.digest import FileDigest
from clinmerge_jax.checkpoint.output import JOURNAL_FILE, OutputFolder, sync
from clinmerge_jax.checkpoint.safetensors import TensorEntry, header_bytes, read_into
from clinmerge_jax.merging import exact
from clinmerge_jax.merging.diagnostics import TensorDifference
from clinmerge_jax.merging.methods import METHODS, PairTotals
from clinmerge_jax.merging.plan import MergePlan, PlannedTensor, pair_totals

PIECE_BYTES = 16 << 20  # of one source; small enough for caches and bounded memory, large enough for the disk
HELD_BYTES = 256 << 20  # of all sources of one tensor that waits for its totals on the device
_QUEUED_PIECES = 2
_SYNC_BYTES = 256 << 20  # written data is pushed to the disk this often, so that it does not all wait for the end


class _Stopped(Exception):
    """Another thread of the engine failed; this one has nothing to report."""


class _Channel:
    """A bounded queue between two threads that wakes up when the engine stops."""

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
    """A thread whose failure stops the engine and is raised again where it is joined."""

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
        except BaseException as error:  # raised again in the thread that joins
            self.error = error
            self._stop_event.set()


def _read_source(
    steps: Iterator[tuple[TensorEntry, int, int, int]], digests: dict[pathlib.Path, FileDigest], channel: _Channel
) -> None:
    """Reads pieces (entry, columns, first row, rows) in order and sends them as device arrays."""
    descriptors: dict[pathlib.Path, int] = {}
    try:
        for entry, columns, first_row, rows in steps:
            if entry.file not in descriptors:
                descriptors[entry.file] = os.open(entry.file, os.O_RDONLY)
                digests[entry.file].read_header()
            offset = entry.offset + first_row * columns * entry.dtype.itemsize
            nbytes = rows * columns * entry.dtype.itemsize
            # A buffer of its own for each piece: on CPUs the device array may be this very memory.
            piece = np.empty(nbytes, np.uint8)
            read_into(descriptors[entry.file], offset, memoryview(piece), entry.file)
            digests[entry.file].update(offset, memoryview(piece))
            channel.put(jax.device_put(piece.view(entry.dtype).reshape(rows, columns)))
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)


@dataclasses.dataclass(frozen=True)
class _EndOfShard:
    differences: list[TensorDifference]


def _write_shards(
    plan: MergePlan, todo: Sequence[str], output: OutputFolder, journal: dict, channel: _Channel, progress
) -> None:
    """Writes merged pieces in order; a finished file is synced, renamed and entered into the journal."""
    for file_name in todo:
        temporary = output.path(file_name + ".part")
        with temporary.open("wb", buffering=0) as file:
            tensors = (plan.tensors[name] for name in plan.files[file_name])
            file.write(header_bytes((tensor.name, tensor.dtype, tensor.shape) for tensor in tensors))
            unsynced = 0
            while not isinstance(item := channel.get(), _EndOfShard):
                data = memoryview(np.asarray(item).reshape(-1).view(np.uint8))
                written = 0
                while written < len(data):
                    written += file.write(data[written:])
                progress(len(data))
                unsynced += len(data)
                if unsynced >= _SYNC_BYTES:
                    os.fdatasync(file.fileno())
                    unsynced = 0
            os.fsync(file.fileno())
        temporary.rename(output.path(file_name))
        sync(output.partial)  # the journal must not name a file that a power cut could take back
        journal[file_name] = [difference.to_json() for difference in item.differences]
        output.write_text(JOURNAL_FILE, json.dumps(journal))


class _Computation:
    """What happens to the pieces of one tensor on the device."""

    def __init__(self, plan: MergePlan, channels: Sequence[_Channel], piece_bytes: int, held_bytes: int):
        self.plan = plan
        self.method = METHODS[plan.recipe.method]
        self.statistics = jax.jit(self.method.statistics)
        self.apply = jax.jit(self.method.apply, static_argnames="dtype")
        self.channels = channels
        self.piece_bytes = piece_bytes
        self.held_bytes = held_bytes

    def entries(self, tensor: PlannedTensor) -> list[TensorEntry]:
        """Where each source's bytes lie."""
        return [source.tensors[tensor.name] for source in self.plan.sources]

    def pieces(self, tensor: PlannedTensor) -> list[tuple[int, int]]:
        """(first row, rows) of each piece; at least one row, however long."""
        columns = tensor.shape[-1] if tensor.shape else 1
        rows = tensor.size // columns
        widest = max(entry.dtype.itemsize for entry in self.entries(tensor))
        step = max(1, self.piece_bytes // (columns * widest))
        return [(row, min(step, rows - row)) for row in range(0, rows, step)]

    def read_twice(self, tensor: PlannedTensor) -> bool:
        """Whether the pieces are read again for the second half instead of being held."""
        return self.method.needs_totals and sum(entry.nbytes for entry in self.entries(tensor)) > self.held_bytes

    def steps(self, tensor: PlannedTensor, source: int) -> Iterator[tuple[TensorEntry, int, int, int]]:
        """The reads of one source for this tensor, in the order `merge` takes them."""
        entry = self.entries(tensor)[source]
        for _ in range(2 if self.read_twice(tensor) else 1):
            for first_row, rows in self.pieces(tensor):
                yield entry, entry.shape[-1] if entry.shape else 1, first_row, rows

    def merge(self, tensor: PlannedTensor, send: Callable[[jax.Array], None]) -> Callable[[], TensorDifference]:
        """Merges one tensor and sends its pieces in order.

        Returns:
          A function that waits for the totals and gives the tensor's record.
        """
        sums: list[list[jax.Array]] = []
        held: list[list[jax.Array]] = []
        count = len(self.pieces(tensor))
        if not self.method.needs_totals:
            coefficients = tensor.coefficients([])
            for _ in range(count):
                piece = [channel.get() for channel in self.channels]
                sums.append(self.statistics(piece))
                send(self._apply(piece, coefficients, tensor))
            return lambda: tensor.difference(self._totals(tensor, sums), coefficients)
        again = self.read_twice(tensor)
        for _ in range(count):
            piece = [channel.get() for channel in self.channels]
            sums.append(self.statistics(piece))
            if not again:
                held.append(piece)
        totals = self._totals(tensor, sums)
        coefficients = tensor.coefficients(totals)
        for index in range(count):
            if again:
                piece = [channel.get() for channel in self.channels]
            else:
                piece, held[index] = held[index], []
            send(self._apply(piece, coefficients, tensor))
        return lambda: tensor.difference(totals, coefficients)

    @staticmethod
    def _totals(tensor: PlannedTensor, sums: list[list[jax.Array]]) -> list[PairTotals]:
        per_pair = [[np.asarray(rows) for rows in per_piece] for per_piece in zip(*sums)]
        return pair_totals(tensor.name, tensor.origins, per_pair)

    def _apply(self, piece: Sequence[jax.Array], coefficients: Sequence[float], tensor: PlannedTensor) -> jax.Array:
        return self.apply(piece, exact.split_coefficients(coefficients), dtype=tensor.dtype)


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
      piece_bytes: of one source in one piece.
      held_bytes: the most that one tensor of all sources may take on the device between the halves.

    Returns:
      Per tensor how the first two sources differ and the coefficients used; and the SHA-256 of every
      input weight file by its path.

    Raises:
      BadInput: a tensor holds values that are not finite.
      OSError: reading or writing failed; a rerun goes on from the last finished file.
    """
    journal_path = output.path(JOURNAL_FILE)
    journal = json.loads(journal_path.read_bytes()) if journal_path.is_file() else {}
    journal = {name: records for name, records in journal.items() if output.path(name).is_file()}
    for file_name in journal:
        progress(sum(plan.tensors[name].nbytes for name in plan.files[file_name]))
    todo = [file_name for file_name in plan.files if file_name not in journal]
    ordered = [plan.tensors[name] for file_name in todo for name in plan.files[file_name]]

    stop = threading.Event()
    channels = [_Channel(stop, _QUEUED_PIECES) for _ in plan.sources]
    writing = _Channel(stop, _QUEUED_PIECES)
    computation = _Computation(plan, channels, piece_bytes, held_bytes)
    digests = [{path: FileDigest(path) for path in source.files} for source in plan.sources]

    def reader(index: int) -> Callable[[], None]:
        steps = (step for tensor in ordered for step in computation.steps(tensor, index))
        return lambda: _read_source(steps, digests[index], channels[index])

    workers = [_Worker(reader(index), stop, f"read {source.label}") for index, source in enumerate(plan.sources)]
    workers.append(
        _Worker(lambda: _write_shards(plan, todo, output, journal, writing, progress), stop, "write merged weights")
    )
    for worker in workers:
        worker.start()
    try:
        for file_name in todo:
            # Totals of one tensor are waited for while the next is under way.
            pending = [computation.merge(plan.tensors[name], writing.put) for name in plan.files[file_name]]
            writing.put(_EndOfShard([record() for record in pending]))
    except _Stopped:
        pass  # the worker that failed is found below
    except BaseException:
        stop.set()
        raise
    finally:
        for worker in workers:
            worker.join()
    for worker in workers:
        if worker.error is not None:
            raise worker.error

    sha256 = _finish_digests([digest for per_source in digests for digest in per_source.values()])
    plan.write_small_files(output)
    records = [TensorDifference.from_json(record) for name in plan.files for record in journal[name]]
    return records, sha256


def _finish_digests(digests: Sequence[FileDigest]) -> dict[str, str]:
    return {str(digest.path): digest.finish() for digest in digests}
