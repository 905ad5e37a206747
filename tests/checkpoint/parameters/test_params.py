"""Checkpoints to Params on any mesh and back: the stored bits, each read once, in blocks of any size."""

import os
import threading

import jax
import ml_dtypes
import numpy as np
import pytest
from support import TINY, llama_tensors, read_raw, write_llama

from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.formats.safetensors import DTYPES
from clinmerge_jax.checkpoint.output import OutputFolder
from clinmerge_jax.checkpoint.parameters import blocks, params
from clinmerge_jax.checkpoint.parameters.blocks import Blocks
from clinmerge_jax.checkpoint.parameters.params import load_params, save_params, write_weights
from clinmerge_jax.checkpoint.parameters.weight_files import split_into_shards
from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.parameters import iterate_params, parameters
from clinmerge_jax.parallel.layout import Layout
from clinmerge_jax.parallel.mesh import MeshShape, build_mesh

BF16, F16, F32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16), np.dtype(np.float32)
MESHES = [(8, 1, 1), (2, 2, 2), (1, 1, 8), (1, 8, 1)]
# BLOCK_BYTES: a row of each shard; a few rows, which do not divide the shards; a power of two; the normal size.
ROW, FEW_ROWS, POWER, WHOLE = 1, 1100, 256, blocks.BLOCK_BYTES
ODD = {
    "vocab_size": 51,  # which no mesh cuts without padding
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "attention_bias": True,
    "mlp_bias": True,
}
EVEN = {**ODD, "vocab_size": 64, "intermediate_size": 32}  # shards of 2^n rows: blocks of 2^n bytes do not overlap
SHARD_BYTES = 3000  # of weight files


def _block_bytes(monkeypatch, nbytes):
    for module in (blocks, params):
        monkeypatch.setattr(module, "BLOCK_BYTES", nbytes)


def _mesh(shape):
    return build_mesh(MeshShape(*shape), jax.devices()[: MeshShape(*shape).size])


def _tensors(config, dtype):
    """Random tensors, those of biases among them."""
    tensors = llama_tensors(config, 3, dtype)
    generator = np.random.default_rng(4)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    sizes = dict.fromkeys(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"), hidden)
    sizes |= {"mlp.gate_proj": inner, "mlp.up_proj": inner, "mlp.down_proj": hidden}
    for layer in range(config["num_hidden_layers"]):
        for module, size in sizes.items():
            tensors[f"model.layers.{layer}.{module}.bias"] = generator.normal(size=size).astype(dtype)
    return tensors


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A Checkpoint in three weight files, one for each model and dtype, and its tensors as the library reads them."""
    made = {}

    def get(model, dtype):
        key = (model["vocab_size"], dtype)
        if key not in made:
            folder = tmp_path_factory.mktemp("model") / "checkpoint"
            write_llama(folder, dtype=dtype, shards=3, tensors=_tensors({**TINY, **model}, dtype), **model)
            checkpoint = open_checkpoint(str(folder), "config.model")
            raw = {}
            for path in checkpoint.files:
                for name, (code, shape, data) in read_raw(path).items():
                    raw[name] = np.frombuffer(data, DTYPES[code]).reshape(shape)
            made[key] = checkpoint, raw
        return made[key]

    return get


def _expected(row, config, raw):
    """A leaf without padding, from the library's tensors."""
    tensors = [raw[name] for name in row.names(config)]
    return np.stack(tensors) if row.stacked else tensors[0]


@pytest.fixture(scope="module", params=[(BF16, WHOLE), (BF16, ROW), (F16, FEW_ROWS), (F32, FEW_ROWS)], ids=str)
def blocked(request):
    return request.param


@pytest.fixture(scope="module", params=MESHES, ids=str)
def loaded(request, blocked, stored):
    """Params on a mesh, their layout, and the library's tensors."""
    dtype, nbytes = blocked
    checkpoint, raw = stored(ODD, dtype)
    with pytest.MonkeyPatch.context() as monkeypatch:
        _block_bytes(monkeypatch, nbytes)
        config, tree = load_params(checkpoint, mesh=_mesh(request.param))
        layout = Layout(_mesh(request.param), config)
        if nbytes == ROW:
            steps = [len(Blocks(row, layout, dtype.itemsize).starts) for row in parameters(config)]
            assert min(steps) > 1, "every leaf moves in several blocks"
    return tree, layout, raw


def test_every_leaf_is_the_librarys_tensors_bit_for_bit(loaded):
    tree, layout, raw = loaded
    for row, leaf in iterate_params(tree, layout.config):
        expected = _expected(row, layout.config, raw)
        assert leaf.dtype == expected.dtype and leaf.shape == layout.shape(row)
        cut = np.asarray(leaf)[tuple(slice(size) for size in expected.shape)]
        assert cut.tobytes() == expected.tobytes(), row.path


def test_every_leaf_is_that_of_one_device(loaded, stored, blocked):
    tree, layout, _ = loaded
    _, alone = load_params(stored(ODD, blocked[0])[0])
    pairs = zip(iterate_params(tree, layout.config), iterate_params(alone, layout.config))
    for (row, leaf), (_, one) in pairs:
        assert one.devices() == {jax.local_devices()[0]} and one.shape == row.stacked_shape(layout.config)
        cut = np.asarray(leaf)[tuple(slice(size) for size in one.shape)]
        assert cut.tobytes() == np.asarray(one).tobytes(), row.path


def test_rows_beyond_the_vocabulary_are_zero(loaded):
    tree, layout, _ = loaded
    for name in ("embed_tokens", "lm_head"):
        padding = np.asarray(tree[name]["weight"])[51:]
        assert len(padding) == {1: 0, 2: 1, 8: 5}[layout.mesh.shape["tensor"]]
        assert padding.tobytes() == bytes(padding.nbytes)


def test_each_device_holds_its_shard_of_the_layout_and_nothing_else(loaded):
    tree, layout, raw = loaded
    for row, leaf in iterate_params(tree, layout.config):
        assert leaf.sharding == layout.sharding(row)
        whole = np.zeros(layout.shape(row), leaf.dtype)
        expected = _expected(row, layout.config, raw)
        whole[tuple(slice(size) for size in expected.shape)] = expected
        places = layout.sharding(row).devices_indices_map(whole.shape)
        assert {shard.device for shard in leaf.addressable_shards} == set(places)
        for shard in leaf.addressable_shards:
            assert np.asarray(shard.data).tobytes() == whole[places[shard.device]].tobytes(), (row.path, shard.device)


@pytest.mark.parametrize("mesh", [None, (2, 2, 2), (1, 8, 1)])
@pytest.mark.parametrize("dtype, nbytes", [(BF16, FEW_ROWS), (F16, WHOLE)], ids=["bfloat16", "float16"])
def test_a_dtype_converts_every_leaf(dtype, mesh, nbytes, stored, monkeypatch):
    _block_bytes(monkeypatch, nbytes)
    checkpoint, raw = stored(ODD, dtype)
    config, tree = load_params(checkpoint, np.float32, mesh=mesh and _mesh(mesh))
    for row, leaf in iterate_params(tree, config):
        expected = _expected(row, config, raw).astype(np.float32)
        assert leaf.dtype == np.float32
        assert np.asarray(leaf)[tuple(slice(size) for size in expected.shape)].tobytes() == expected.tobytes()


@pytest.mark.parametrize("mesh", [None, (1, 8, 1)])
def test_a_leaf_that_fits_in_a_block_as_it_is_stored_but_not_converted(mesh, stored, monkeypatch):
    checkpoint, raw = stored(ODD, BF16)
    embedding = raw["model.embed_tokens.weight"]
    _block_bytes(monkeypatch, embedding.nbytes)
    _, tree = load_params(checkpoint, np.float32, mesh=mesh and _mesh(mesh))
    assert np.asarray(tree["embed_tokens"]["weight"]).tobytes() == embedding.astype(np.float32).tobytes()


@pytest.mark.parametrize("mesh", [(2, 2, 2), (1, 1, 8)])
def test_a_leaf_that_fits_in_a_block_but_not_with_its_padding(mesh, stored, monkeypatch):
    checkpoint, raw = stored(ODD, BF16)
    embedding = raw["model.embed_tokens.weight"]
    _block_bytes(monkeypatch, embedding.nbytes)
    _, tree = load_params(checkpoint, mesh=_mesh(mesh))
    assert np.asarray(tree["embed_tokens"]["weight"])[:51].tobytes() == embedding.tobytes()


@pytest.fixture
def reads(monkeypatch):
    """Path, offset and length of every read of weights."""
    seen, real = [], blocks.read_into

    def record(descriptor, offset, buffer, path):
        seen.append((path, offset, len(buffer)))
        real(descriptor, offset, buffer, path)

    monkeypatch.setattr(blocks, "read_into", record)
    return seen


def _count(reads, checkpoint):
    """How often each byte of tensors was read, and how often any other."""
    counts = {path: np.zeros(os.path.getsize(path), int) for path in checkpoint.files}
    for path, offset, length in reads:
        counts[path][offset : offset + length] += 1
    inside = []
    for entry in checkpoint.tensors.values():
        place = counts[entry.file][entry.offset : entry.offset + entry.nbytes]
        inside.append(place.copy())
        place[:] = 0
    return np.concatenate(inside), sum(rest.sum() for rest in counts.values())


@pytest.mark.parametrize("model, nbytes", [(ODD, WHOLE), (ODD, ROW), (EVEN, POWER)], ids=["whole", "rows", "blocks"])
@pytest.mark.parametrize("mesh", [None, *MESHES])
def test_each_byte_of_a_tensor_is_read_once_and_no_other(mesh, model, nbytes, stored, reads, monkeypatch):
    _block_bytes(monkeypatch, nbytes)
    checkpoint, _ = stored(model, BF16)
    load_params(checkpoint, mesh=mesh and _mesh(mesh))
    inside, outside = _count(reads, checkpoint)
    assert (inside.min(), inside.max(), outside) == (1, 1, 0)
    assert inside.size == checkpoint.nbytes


@pytest.mark.parametrize("mesh", MESHES)
def test_blocks_that_overlap_read_every_byte_and_none_outside(mesh, stored, reads, monkeypatch):
    _block_bytes(monkeypatch, FEW_ROWS)
    checkpoint, _ = stored(ODD, F32)
    load_params(checkpoint, mesh=_mesh(mesh))
    inside, outside = _count(reads, checkpoint)
    assert inside.min() == 1 and inside.max() == 2 and outside == 0


@pytest.mark.parametrize("mesh", [None, *MESHES])
@pytest.mark.parametrize("dtype", [None, np.float32], ids=["as it is", "float32"])
def test_nothing_larger_than_a_block_is_read_or_placed(mesh, dtype, stored, reads, monkeypatch):
    _block_bytes(monkeypatch, FEW_ROWS)
    placed, real = [], params.place

    def record(leaf, block, *arguments, **shardings):
        placed.append(block.nbytes)
        return real(leaf, block, *arguments, **shardings)

    monkeypatch.setattr(params, "place", record)
    checkpoint, _ = stored(ODD, BF16)
    load_params(checkpoint, dtype, mesh=mesh and _mesh(mesh))
    largest = max(entry.nbytes for entry in checkpoint.tensors.values())
    assert max(length for *_, length in reads) <= FEW_ROWS < largest
    assert placed and max(placed) <= FEW_ROWS


@pytest.mark.parametrize("nbytes", [FEW_ROWS, POWER, WHOLE])
@pytest.mark.parametrize("mesh", [None, (2, 2, 2)])
def test_progress_comes_to_the_bytes_of_the_tensors(mesh, nbytes, stored, monkeypatch):
    _block_bytes(monkeypatch, nbytes)
    checkpoint, _ = stored(EVEN, BF16)
    calls = []
    load_params(checkpoint, mesh=mesh and _mesh(mesh), progress=calls.append)
    assert min(calls) > 0
    if nbytes == FEW_ROWS:  # less than a byte a step is lost
        assert 0 <= checkpoint.nbytes - sum(calls) < len(calls)
    else:
        assert sum(calls) == checkpoint.nbytes


def test_layers_of_different_dtypes_are_refused_unless_one_is_given(tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    tensors = llama_tensors(TINY)
    tensors[name] = tensors[name].astype(np.float32)
    checkpoint = open_checkpoint(str(write_llama(tmp_path / "model", tensors=tensors)), "x")
    with pytest.raises(BadInput, match=f"tensor {name} is float32, but bfloat16 in other layers"):
        load_params(checkpoint)
    _, tree = load_params(checkpoint, np.float32)
    expected = tensors[name].tobytes()
    assert np.asarray(tree["layers"]["mlp"]["up_proj"]["weight"][1]).tobytes() == expected


def test_leaves_may_differ_in_dtype(tmp_path, monkeypatch):
    norms = [name for name in llama_tensors(TINY) if "norm" in name]
    tensors = {name: x.astype(F32 if name in norms else BF16) for name, x in llama_tensors(TINY).items()}
    folder = write_llama(tmp_path / "model", tensors=tensors)
    _block_bytes(monkeypatch, 100)
    config, tree = load_params(open_checkpoint(str(folder), "x"), mesh=_mesh((2, 2, 2)))
    for row, leaf in iterate_params(tree, config):
        assert leaf.dtype == (F32 if "norm" in row.name else BF16)
        assert np.asarray(leaf).tobytes() == _expected(row, config, tensors).tobytes()


@pytest.mark.parametrize("nbytes", [ROW, WHOLE])
def test_a_failing_disk_ends_the_load_with_its_error_and_no_thread_left(nbytes, stored, monkeypatch):
    def fail(*_):
        raise OSError("the disk is gone")

    _block_bytes(monkeypatch, nbytes)
    monkeypatch.setattr(blocks, "read_into", fail)
    before = threading.active_count()
    with pytest.raises(OSError, match="the disk is gone"):
        load_params(stored(ODD, BF16)[0])
    assert threading.active_count() == before


def _files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".safetensors"}


def _split(config, itemsize):
    sizes = [
        (name, int(np.prod(row.shape(config))) * itemsize) for row in parameters(config) for name in row.names(config)
    ]
    return split_into_shards(sizes, SHARD_BYTES)


@pytest.fixture(scope="module")
def saved(stored, tmp_path_factory):
    """The weight files that `save_params` makes of Params on one device, for each model and dtype."""
    made = {}

    def get(model, dtype):
        key = (model["vocab_size"], dtype)
        if key not in made:
            checkpoint, _ = stored(model, dtype)
            config, tree = load_params(checkpoint)
            with OutputFolder(tmp_path_factory.mktemp("saved") / "model", {}) as output:
                output.open()
                save_params(tree, config, checkpoint.config, output, shard_bytes=SHARD_BYTES)
                output.commit({})
            made[key] = _files(output.target)
        return made[key]

    return get


def _write(tree, layout, itemsize, target, progress=lambda nbytes: None):
    with OutputFolder(target, {}) as output:
        output.open()
        write_weights(tree, layout, _split(layout.config, itemsize), output, progress)
        output.commit({})
    return _files(target)


def test_every_mesh_writes_the_files_that_one_device_saves(loaded, blocked, stored, saved, tmp_path, monkeypatch):
    tree, layout, _ = loaded
    dtype, nbytes = blocked
    expected = saved(ODD, dtype)
    assert len(expected) > 3
    _block_bytes(monkeypatch, nbytes)
    calls = []
    assert _write(tree, layout, dtype.itemsize, tmp_path / "model", calls.append) == expected
    assert 0 <= stored(ODD, dtype)[0].nbytes - sum(calls) < len(calls)  # less than a byte a step is lost


def test_what_is_saved_on_one_device_is_what_was_loaded(stored, saved, tmp_path):
    _, raw = stored(ODD, F16)
    for name, data in saved(ODD, F16).items():
        (tmp_path / name).write_bytes(data)
    read = {name: value for path in tmp_path.iterdir() for name, value in read_raw(path).items()}
    assert read == {name: ("F16", values.shape, values.tobytes()) for name, values in raw.items()}


@pytest.mark.parametrize("nbytes", [POWER, WHOLE])
def test_leaves_that_lie_otherwise_are_moved_and_progress_is_exact(nbytes, stored, saved, tmp_path, monkeypatch):
    _block_bytes(monkeypatch, nbytes)
    checkpoint, _ = stored(EVEN, BF16)
    config, tree = load_params(checkpoint, mesh=_mesh((8, 1, 1)))
    calls = []
    written = _write(tree, Layout(_mesh((1, 4, 2)), config), 2, tmp_path / "model", calls.append)
    assert written == saved(EVEN, BF16)
    assert sum(calls) == checkpoint.nbytes and min(calls) > 0
