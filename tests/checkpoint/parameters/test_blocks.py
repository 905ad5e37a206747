"""Blocks of a leaf: how they cut it, which bytes of a file they touch, and in what order they come."""

import os
import threading
import time

import numpy as np
import pytest
from support import llama_tensors, tiny_config, write_llama

from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.formats.safetensors import TensorEntry
from clinmerge_jax.checkpoint.parameters import blocks as blocks_module
from clinmerge_jax.checkpoint.parameters.blocks import (
    Blocks,
    Part,
    WeightReader,
    ahead,
    runs,
    write,
)
from clinmerge_jax.llama.parameters import parameters
from clinmerge_jax.parallel.layout import Layout
from clinmerge_jax.parallel.mesh import MeshShape, build_mesh

SIZES = {
    "vocab_size": 51,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 2,
}
CONFIG = tiny_config(**SIZES)
MESHES = [(8, 1, 1), (2, 2, 2), (1, 1, 8), (1, 8, 1), (1, 4, 2)]
ROW, FEW_ROWS, WHOLE = 1, 300, 64 << 20  # BLOCK_BYTES
# The devices of one host: side by side, or with gaps between their columns.
HOSTS = [(0, 1, 2, 3), (4, 5, 6, 7), (0, 2, 4, 6), (1, 2, 5), (7,)]


def _layout(shape):
    return Layout(build_mesh(MeshShape(*shape)), CONFIG)


def _matrix(layout, row):
    """Rows with padding, and columns, of one tensor."""
    rows, *rest = layout.shape(row)[row.stacked :]
    return rows, int(np.prod(rest))


@pytest.fixture
def hosted(monkeypatch):
    """Lets this process hold some devices only, as one host of several does."""

    def limit(devices):
        def indices(self, shape):
            return [index for device, index in self.sharding.devices_indices_map(shape).items() if device.id in devices]

        monkeypatch.setattr(Blocks, "_indices", indices)

    return limit


def _held(layout, row, devices):
    """Which entries of a tensor (with padding) lie on some devices, by the sharding alone."""
    rows, columns = _matrix(layout, row)
    held = np.zeros((rows, columns), bool)
    shape = layout.shape(row)[row.stacked :]
    for device, index in layout.named(*row.axes).devices_indices_map(shape).items():
        if device.id in devices:
            held[index if len(index) == 2 else (*index, slice(None))] = True
    return held


@pytest.mark.parametrize("block_bytes", [ROW, FEW_ROWS, WHOLE])
@pytest.mark.parametrize("mesh", MESHES)
def test_the_steps_cover_every_entry_and_overlap_only_in_the_last(mesh, block_bytes, monkeypatch):
    monkeypatch.setattr(blocks_module, "BLOCK_BYTES", block_bytes)
    layout = _layout(mesh)
    for row in parameters(CONFIG):
        blocks = Blocks(row, layout, 2)
        covered = np.zeros(_matrix(layout, row), int)
        for start in blocks.starts:
            step = np.zeros_like(covered)
            for part in blocks.parts(start):
                step[part.row : part.row + blocks.size, slice(*part.columns)] += 1
            assert step.max() == 1, "replicas once"
            covered += step
        assert covered.min() == 1 and covered.max() == (1 if blocks.shard[0] % blocks.size == 0 else 2)
        assert blocks.one_step == (blocks.size == blocks.shard[0])


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("block_bytes", [ROW, FEW_ROWS, 2000])
@pytest.mark.parametrize("mesh", MESHES)
def test_a_block_is_as_large_as_the_limit_lets_it_be(mesh, block_bytes, itemsize, monkeypatch):
    monkeypatch.setattr(blocks_module, "BLOCK_BYTES", block_bytes)
    for row in parameters(CONFIG):
        blocks = Blocks(row, _layout(mesh), itemsize)
        row_bytes = sum(high - low for low, high in (part.columns for part in blocks.parts(0))) * itemsize
        assert blocks.size * row_bytes <= block_bytes or blocks.size == 1
        assert (blocks.size + 1) * row_bytes > block_bytes or blocks.one_step


@pytest.mark.parametrize("block_bytes", [ROW, FEW_ROWS])
@pytest.mark.parametrize("devices", HOSTS)
@pytest.mark.parametrize("mesh", [(1, 8, 1), (2, 2, 2), (1, 4, 2), (1, 1, 8)])
def test_a_host_reads_only_what_its_devices_hold(mesh, devices, block_bytes, hosted, monkeypatch, tmp_path):
    checkpoint = open_checkpoint(str(write_llama(tmp_path / "model", **SIZES)), "x")
    monkeypatch.setattr(blocks_module, "BLOCK_BYTES", block_bytes)
    hosted(devices)
    reads, real = [], blocks_module.read_into

    def record(descriptor, offset, buffer, path):
        reads.append((offset, len(buffer)))
        real(descriptor, offset, buffer, path)

    monkeypatch.setattr(blocks_module, "read_into", record)
    layout = _layout(mesh)
    tensors = llama_tensors(checkpoint.config)
    with WeightReader(checkpoint.files) as reader:
        for row in parameters(CONFIG):
            name = row.names(CONFIG)[-1]
            entry, blocks = checkpoint.tensors[name], Blocks(row, layout, 2)
            held = _held(layout, row, devices)
            padded = np.zeros(held.shape, entry.dtype)
            padded[: blocks.rows] = tensors[name].reshape(blocks.rows, -1)
            reads.clear()
            for start in blocks.starts:
                for part, values in reader.read(entry, blocks, start, entry.dtype).items():
                    expected = padded[part.row : part.row + blocks.size, slice(*part.columns)]
                    assert values.tobytes() == expected.tobytes()
            counts = np.zeros(os.path.getsize(entry.file), int)
            for offset, length in reads:
                counts[offset : offset + length] += 1
            wanted = np.repeat(held[: blocks.rows].reshape(-1), entry.dtype.itemsize)
            inside = counts[entry.offset : entry.offset + entry.nbytes]
            np.testing.assert_array_equal(inside > 0, wanted)
            assert counts.sum() == inside.sum(), "nothing of another tensor"
            if blocks.shard[0] % blocks.size == 0:
                assert counts.max() <= 1
            widest = max(sum(held[:, low:high].any(0)) for _, (low, high), _ in runs(blocks.parts(0)))
            assert max((length for _, length in reads), default=0) <= widest * blocks.size * entry.dtype.itemsize


def test_columns_that_lie_apart_are_read_apart(hosted, monkeypatch, tmp_path):
    checkpoint = open_checkpoint(str(write_llama(tmp_path / "model", **SIZES)), "x")
    hosted((0, 1, 3))
    (row,) = (row for row in parameters(CONFIG) if row.path == ("embed_tokens", "weight"))
    entry, blocks = checkpoint.tensors[row.name], Blocks(row, _layout((1, 8, 1)), 2)
    reads = []
    monkeypatch.setattr(blocks_module, "read_into", lambda _, offset, buffer, path: reads.append((offset, len(buffer))))
    with WeightReader(checkpoint.files) as reader:
        reader.read(entry, blocks, 0, entry.dtype)
    rows = [entry.offset + 16 * 2 * n for n in range(51)]
    assert sorted(reads) == sorted([(first, 4 * 2) for first in rows] + [(first + 6 * 2, 2 * 2) for first in rows])


@pytest.mark.parametrize("block_bytes", [ROW, FEW_ROWS, WHOLE])
@pytest.mark.parametrize("mesh", [(1, 8, 1), (2, 2, 2), (1, 4, 2), (1, 1, 8)])
def test_hosts_write_their_own_bytes_and_together_all(mesh, block_bytes, hosted, monkeypatch, tmp_path):
    monkeypatch.setattr(blocks_module, "BLOCK_BYTES", block_bytes)
    layout, path, before, behind = _layout(mesh), tmp_path / "weights", 24, 400
    hosts = [(0, 3, 5), (1, 2, 4, 6, 7)]
    for row in parameters(CONFIG):
        shape = row.shape(CONFIG)
        padded = np.ones(_matrix(layout, row), np.uint16) * 5  # padding that must not be written
        padded[: shape[0]] = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape[0], -1) % 251 * 257
        entry = TensorEntry(row.name, padded.dtype, shape, path, before)
        untouched = b"\xff" * (before + entry.nbytes + behind)
        expected = np.frombuffer(untouched, np.uint8).copy()
        path.write_bytes(untouched)
        with path.open("r+b") as file:
            for devices in hosts:
                hosted(devices)
                blocks, total = Blocks(row, layout, 2), 0
                for start in blocks.starts:
                    parts = {
                        part: padded[part.row : part.row + blocks.size, slice(*part.columns)]
                        for part in blocks.parts(start)
                    }
                    total += write(file.fileno(), entry, blocks, parts)
                mine = np.repeat(_held(layout, row, devices)[: shape[0]].reshape(-1), 2)
                tensor = expected[before : before + entry.nbytes]
                tensor[mine] = padded[: shape[0]].reshape(-1).view(np.uint8)[mine]
                assert path.read_bytes() == expected.tobytes(), (row.path, devices)
                if blocks.shard[0] % blocks.size == 0:
                    assert total == mine.sum()
        assert tensor.tobytes() == padded[: shape[0]].tobytes()


def test_parts_side_by_side_are_one_run_and_others_are_not():
    def part(row, low, high):
        return Part(row, (low, high))

    parts = [part(8, 0, 4), part(0, 12, 16), part(0, 4, 8), part(0, 0, 4), part(8, 4, 8)]
    assert list(runs(parts)) == [
        (0, (0, 8), [part(0, 0, 4), part(0, 4, 8)]),
        (0, (12, 16), [part(0, 12, 16)]),
        (8, (0, 8), [part(8, 0, 4), part(8, 4, 8)]),
    ]
    assert list(runs([])) == []


def test_results_come_in_the_order_of_the_items():
    def slow_at_first(item):
        time.sleep(0.02 * (item % 3 == 0))
        return item * item

    assert list(ahead(slow_at_first, range(10))) == [(item, item * item) for item in range(10)]
    assert list(ahead(slow_at_first, [])) == []


def test_items_are_computed_while_earlier_ones_are_used_but_only_a_few():
    taken, third = [], threading.Event()

    def items():
        for item in range(20):
            taken.append(item)
            yield item

    def work(item):
        if item == 2:
            third.set()

    for done, _ in enumerate(ahead(work, items(), threads=2)):
        assert third.wait(10), "the next items are under way before the first one is asked for again"
        assert len(taken) <= done + 3


def test_an_error_reaches_the_caller_at_its_item_and_leaves_no_thread():
    def work(item):
        if item == 3:
            raise OSError("the disk is gone")

    before, seen = threading.active_count(), []
    with pytest.raises(OSError, match="the disk is gone"):
        for item, _ in ahead(work, range(10)):
            seen.append(item)
    assert seen == [0, 1, 2] and threading.active_count() == before
