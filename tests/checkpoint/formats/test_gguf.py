"""The GGUF file format: every type's values, the header, and damage."""

import json
import random
import struct

import gguf
import numpy as np
import pytest
from gguf_files import K_QUANTS, WRITTEN, llama_cpp_tensors, metadata, write, write_llama

from clinmerge_jax.checkpoint.formats.gguf import (
    PLAIN,
    QUANTIZED,
    dequantize,
    is_gguf,
    open_gguf,
    read_whole,
)
from clinmerge_jax.errors import BadInput


@pytest.mark.parametrize("kind", WRITTEN)
def test_values_are_those_of_the_library_bit_for_bit(tmp_path, kind):
    """Made by the library's own quantizer, read back by its own reader and dequantized by it, and by ours."""
    write_llama(tmp_path / "model.gguf", kind)
    ours = open_gguf(tmp_path / "model.gguf").tensors
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert set(ours) == set(theirs) and {kind, "F32"} == {tensor.kind for tensor in ours.values()}
    for name, tensor in ours.items():
        expected = gguf.dequantize(theirs[name].data, theirs[name].tensor_type)
        values = read_whole(tensor)
        assert values.dtype == PLAIN.get(tensor.kind, np.float32) and values.shape == tensor.shape == expected.shape
        assert values.astype(np.float32).tobytes() == expected.astype(np.float32).tobytes()


def _random_blocks(kind, rows, blocks):
    """Blocks of random bytes whose scales are finite: every value of every field occurs."""
    values, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    raw = np.random.default_rng(0).integers(0, 256, (rows, blocks, nbytes), np.uint8)
    scales = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}[kind]
    for place in scales:
        halves = np.random.default_rng(place).normal(0, 0.01, (rows, blocks, 1)).astype(np.float16)
        raw[:, :, place : place + 2] = halves.view(np.uint8)
    return raw.reshape(rows, -1), blocks * values


@pytest.mark.parametrize("kind", K_QUANTS)
def test_k_quants_are_those_of_the_library_bit_for_bit(tmp_path, kind):
    """The library has no quantizer for them, so the blocks are drawn; read by pieces as well as whole."""
    raw, columns = _random_blocks(kind, 6, 2)
    writer = gguf.GGUFWriter(tmp_path / "k.gguf", "llama")
    writer.add_tensor("x", raw, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensor = open_gguf(tmp_path / "k.gguf").tensors["x"]
    expected = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind])
    assert tensor.shape == (6, columns) and np.isfinite(expected).all() and len(np.unique(expected)) > 100
    assert read_whole(tensor).tobytes() == expected.tobytes()
    assert dequantize(raw[2:5], kind).tobytes() == expected[2:5].tobytes()


def test_every_named_type_is_covered():
    assert set(WRITTEN) | set(K_QUANTS) == set(PLAIN) | set(QUANTIZED)


def test_metadata_are_python_values(tmp_path):
    write_llama(tmp_path / "model.gguf")
    found = open_gguf(tmp_path / "model.gguf").metadata
    expected = metadata()
    for key, value in expected.items():
        assert found[key] == value and type(found[key]) is type(value), key
    assert found["llama.attention.layer_norm_rms_epsilon"] == 1e-5  # not the float32's 9.99999974e-06


def test_a_model_in_several_files_is_one(tmp_path):
    tensors = llama_cpp_tensors(write_llama(tmp_path / "whole.gguf"))
    names = list(tensors)
    for number, part in enumerate((names[:5], names[5:9], names[9:]), start=1):
        entries = {"general.architecture": "llama", "split.count": 3, "split.no": number - 1}
        entries = {**metadata(), **entries} if number == 1 else entries
        write(tmp_path / f"m-{number:05d}-of-00003.gguf", {name: tensors[name] for name in part}, entries)
    model = open_gguf(tmp_path / "m-00001-of-00003.gguf")
    assert len(model.files) == 3 and set(model.tensors) == set(tensors)
    assert all(read_whole(model.tensors[name]).tobytes() == tensors[name].tobytes() for name in tensors)
    (tmp_path / "m-00002-of-00003.gguf").unlink()
    with pytest.raises(BadInput, match="m-00002-of-00003.gguf is missing"):
        open_gguf(tmp_path / "m-00001-of-00003.gguf")


def _refused(path, raw):
    path.write_bytes(raw)
    with pytest.raises(BadInput) as refusal:
        open_gguf(path)
    said = str(refusal.value)
    assert said.startswith(str(path)) and "; " in said or ": give" in said or ": convert" in said, said
    assert "\n" not in said
    return said


def test_other_files_and_types_are_refused_by_name(tmp_path):
    path = tmp_path / "x.gguf"
    assert "is not a GGUF file" in _refused(path, b"not a model")
    assert "is not a GGUF file" in _refused(path, b"")
    assert "big-endian" in _refused(path, b"GGUF" + struct.pack(">IQQ", 3, 0, 0))
    assert "version 1" in _refused(path, b"GGUF" + struct.pack("<IQQ", 1, 0, 0))
    assert "more entries than it has bytes" in _refused(path, b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0))
    array = struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 4, 1 << 60)
    assert "more entries than it has bytes" in _refused(path, b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + array)
    nested = struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 9, 2) + bytes(64)
    assert "unknown type (9)" in _refused(path, b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + nested)
    blocks = struct.pack("<Q", 1) + b"x" + struct.pack("<IQIQ", 1, 256, 16, 0)
    said = _refused(path, b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + blocks + bytes(512))
    assert "tensor x has type IQ2_XXS" in said and "Q4_K" in said
    assert is_gguf(path) and not is_gguf(tmp_path) and not is_gguf(tmp_path / "missing")


def test_a_file_cut_short_is_refused_wherever(tmp_path):
    write_llama(tmp_path / "whole.gguf")
    raw = (tmp_path / "whole.gguf").read_bytes()
    for end in (4, 20, 100, 2000, len(raw) // 2, len(raw) - 1):
        _refused(tmp_path / "cut.gguf", raw[:end])


def test_damaged_headers_end_in_one_line(tmp_path):
    """400 files with bytes of the header changed: opened, or refused; nothing else, and quickly."""
    write_llama(tmp_path / "whole.gguf")
    raw = (tmp_path / "whole.gguf").read_bytes()
    header = raw.index(b"blk.1.ffn_down.weight") + 60
    draw = random.Random(0)
    refused = 0
    for _ in range(400):
        changed = bytearray(raw)
        for _ in range(draw.randint(1, 4)):
            changed[draw.randrange(header)] = draw.choice((0, 255, draw.randrange(256)))
        (tmp_path / "x.gguf").write_bytes(changed)
        try:
            model = open_gguf(tmp_path / "x.gguf")
            json.dumps(model.metadata)
        except BadInput as error:
            refused += 1
            assert "\n" not in str(error)
    assert 50 < refused < 400
