"""Moves the leaves of sharded Params between weight files and devices, block by block.

In each step one program moves, on every device, the next rows of the device's own shard of one tensor. A host needs
memory for a few blocks, whatever the model and its mesh, and touches only the bytes that its own devices hold. Each
checkpoint tensor counts as rows and columns; a vector has one column.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from clinmerge_jax.checkpoint.formats.safetensors import TensorEntry, read_into
from clinmerge_jax.llama.parameters import Parameter
from clinmerge_jax.parallel.layout import Layout

BLOCK_BYTES = 64 << 20  # bytes of one tensor, over all devices of a host
_ALIGNMENT = 64  # bytes

Columns = tuple[int, int]  # first, end


@dataclasses.dataclass(frozen=True)
class Part:
    """The place of one shard of a block in the tensor: its first row and its columns."""

    row: int
    columns: Columns


class Blocks:
    """The blocks in which one leaf is moved.

    Args:
      row: its row of the parameter table.
      layout: its sharding.
      itemsize: bytes of one value.
    """

    def __init__(self, row: Parameter, layout: Layout, itemsize: int):
        shape = layout.shape(row)[row.stacked :]
        self.sharding: NamedSharding = layout.named(*row.axes)
        self.leaf_sharding = layout.sharding(row)
        self.rows, self.columns = row.shape(layout.config)[0], math.prod(shape[1:])
        self.shard = self.sharding.shard_shape(shape)
        self._row_parts = shape[0] // self.shard[0]
        local = {tuple(map(_bounds, index)) for index in self._indices(shape)}
        per_row = math.prod(self.shard[1:]) * itemsize * len(local)
        self.size = min(self.shard[0], max(1, BLOCK_BYTES // per_row))
        self.shape = (self.size * self._row_parts, *shape[1:])
        # The last block of a shard begins early enough to be as long as the others, so that one program moves them all.
        self.starts = [min(start, self.shard[0] - self.size) for start in range(0, self.shard[0], self.size)]

    def _indices(self, shape: tuple[int, ...]) -> list[tuple[slice, ...]]:
        return list(self.sharding.addressable_devices_indices_map(shape).values())

    def part(self, index: tuple[slice, ...], start: int) -> Part:
        """The place of one shard of a block in the tensor.

        Args:
          index: the index of the shard in the block, as JAX gives it for arrays of `shape`.
          start: one of `starts`.
        """
        first, *columns = (_bounds(one) for one in index)
        nth = (first[0] or 0) // self.size
        low, high = columns[0] if columns else (0, 1)
        return Part(nth * self.shard[0] + start, (low or 0, self.columns if high is None else high))

    def parts(self, start: int) -> set[Part]:
        """The parts of one block that this process's devices hold, replicas counted once."""
        return {self.part(index, start) for index in self._indices(self.shape)}

    @property
    def one_step(self) -> bool:
        """Whether a whole tensor moves in one step."""
        return len(self.starts) == 1


def _bounds(index: slice) -> tuple[int | None, int | None]:
    return index.start, index.stop


def runs(parts: Iterable[Part]) -> Iterator[tuple[int, Columns, list[Part]]]:
    """Joins adjacent parts; yields first row, columns, and the parts from left to right."""
    by_row: dict[int, list[Part]] = {}
    for part in sorted(parts, key=lambda part: (part.row, part.columns)):
        by_row.setdefault(part.row, []).append(part)
    for row, line in by_row.items():
        run: list[Part] = []
        for part in line:
            if run and run[-1].columns[1] != part.columns[0]:
                yield row, (run[0].columns[0], run[-1].columns[1]), run
                run = []
            run.append(part)
        yield row, (run[0].columns[0], run[-1].columns[1]), run


class WeightReader:
    """Reads parts of tensors by byte ranges; used by several threads at once."""

    def __init__(self, files: Iterable[pathlib.Path]):
        self._descriptors = {path: os.open(path, os.O_RDONLY) for path in files}

    def __enter__(self) -> "WeightReader":
        return self

    def __exit__(self, *_) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    def read(self, entry: TensorEntry, blocks: Blocks, start: int, dtype: np.dtype) -> dict[Part, np.ndarray]:
        """Reads the parts of one block that this process's devices hold; padding rows are zero."""
        found = {}
        for row, (low, high), line in runs(blocks.parts(start)):
            values = aligned_empty((blocks.size, high - low), entry.dtype)
            present = max(0, min(blocks.size, blocks.rows - row))
            values[present:] = 0
            raw = memoryview(values[:present].reshape(-1).view(np.uint8))
            descriptor = self._descriptors[entry.file]
            for offset, begin, end in _pieces(entry, row, present, (low, high), blocks.columns):
                read_into(descriptor, offset, raw[begin:end], entry.file)
            values = values.astype(dtype, copy=False)
            for part in line:
                first, end = part.columns
                cut = values
                if len(line) > 1:
                    cut = aligned_empty((blocks.size, end - first), values.dtype)
                    cut[...] = values[:, first - low : end - low]
                found[part] = cut.reshape(blocks.size, *blocks.shard[1:])
        return found


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Uninitialised, aligned memory; on CPUs JAX uses such an array without copying it."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _pieces(entry: TensorEntry, row: int, rows: int, columns: Columns, width: int) -> Iterator[tuple[int, int, int]]:
    """Yields the byte ranges of a block: the offset in the file, begin and end in a buffer of these bytes alone.

    Whole rows are one range; parts of rows are one range each.
    """
    low, high = columns
    nbytes = (high - low) * entry.dtype.itemsize
    if high - low == width:
        yield entry.offset + row * nbytes, 0, rows * nbytes
        return
    for index in range(rows):
        offset = entry.offset + ((row + index) * width + low) * entry.dtype.itemsize
        yield offset, index * nbytes, (index + 1) * nbytes


def write(descriptor: int, entry: TensorEntry, blocks: Blocks, parts: Mapping[Part, np.ndarray]) -> int:
    """Writes parts of one tensor to their places in its file, without padding; returns the number of bytes."""
    total = 0
    for row, (low, high), line in runs(parts):
        rows = max(0, min(blocks.size, blocks.rows - row))
        cuts = [parts[part].reshape(blocks.size, -1)[:rows] for part in line]
        values = np.ascontiguousarray(cuts[0]) if len(cuts) == 1 else np.concatenate(cuts, axis=1)
        raw = memoryview(values.reshape(-1).view(np.uint8))
        for offset, begin, end in _pieces(entry, row, rows, (low, high), blocks.columns):
            while begin < end:
                written = os.pwrite(descriptor, raw[begin:end], offset)
                begin, offset, total = begin + written, offset + written, total + written
    return total


def ahead(function: Callable[[Any], Any], items: Iterable[Any], threads: int = 2) -> Iterator[tuple[Any, Any]]:
    """Yields each item with the function's result, in order; threads compute a few results ahead."""
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        pending: collections.deque = collections.deque()
        for item in items:
            pending.append((item, pool.submit(function, item)))
            if len(pending) > threads:
                first, future = pending.popleft()
                yield first, future.result()
        for item, future in pending:
            yield item, future.result()


def _begin(leaf: jax.Array, block: jax.Array, layer: jax.Array, start: jax.Array) -> tuple[jax.Array, ...]:
    rest = (jnp.zeros_like(start),) * (block.ndim - 1)
    return (*((layer,) * (leaf.ndim - block.ndim)), start, *rest)


@functools.partial(jax.jit, static_argnames=("leaf_sharding", "sharding"), donate_argnums=0)
def place(leaf: jax.Array, block: jax.Array, layer: np.int32, start: np.int32, *, leaf_sharding, sharding) -> jax.Array:
    """Puts one block in its place in the leaf; the result reuses the leaf's memory."""
    dtype = leaf.dtype
    # On CPUs XLA would widen the whole bfloat16 leaf to float32 and back for every block.
    as_bits = dtype == jnp.bfloat16 and sharding.mesh.devices.flat[0].platform == "cpu"

    def local(leaf, block, layer, start):
        begin = _begin(leaf, block, layer, start)
        block = block.reshape((1,) * (leaf.ndim - block.ndim) + block.shape)
        if as_bits:
            leaf, block = (jax.lax.bitcast_convert_type(x, jnp.uint16) for x in (leaf, block))
        return jax.lax.bitcast_convert_type(jax.lax.dynamic_update_slice(leaf, block, begin), dtype)

    specs = (leaf_sharding.spec, sharding.spec, jax.P(), jax.P())
    mapped = jax.shard_map(local, mesh=sharding.mesh, in_specs=specs, out_specs=leaf_sharding.spec)
    return mapped(leaf, block, layer, start)


@functools.partial(jax.jit, static_argnames=("size", "leaf_sharding", "sharding"))
def take(leaf: jax.Array, layer: np.int32, start: np.int32, *, size: int, leaf_sharding, sharding) -> jax.Array:
    """Takes one block out of a leaf: `size` rows of every device's shard, from `start` on."""

    def local(leaf, layer, start):
        inner = leaf.shape[leaf.ndim - len(sharding.spec) :]
        shape = (size, *inner[1:])
        block = jax.ShapeDtypeStruct(shape, leaf.dtype)
        sizes = (1,) * (leaf.ndim - block.ndim) + shape
        return jax.lax.dynamic_slice(leaf, _begin(leaf, block, layer, start), sizes).reshape(shape)

    specs = (leaf_sharding.spec, jax.P(), jax.P())
    mapped = jax.shard_map(local, mesh=sharding.mesh, in_specs=specs, out_specs=sharding.spec)
    return mapped(leaf, layer, start)
