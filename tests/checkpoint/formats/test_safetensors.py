"""The header reader and writer against the safetensors library, both ways, and on damaged files."""

import json

import numpy as np
import pytest
import safetensors.numpy
import support

from clinmerge_jax.checkpoint.formats.safetensors import (
    DTYPES,
    header_bytes,
    parse_json,
    read_header,
    read_into,
    read_tensor,
)
from clinmerge_jax.errors import BadInput

SHAPES = {
    "scalar": (),
    "one": (1,),
    "empty": (0,),
    "empty_rows": (3, 0, 5),
    "odd": (7,),
    "matrix": (5, 3),
    "cube": (2, 3, 4),
    "größe.层.🙂": (3,),
    'quoted "name"\\': (2,),
}


def _tensors(dtype: np.dtype) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {name: np.asarray(generator.normal(size=shape), dtype) for name, shape in SHAPES.items()}


@pytest.mark.parametrize("code", DTYPES)
def test_reads_what_the_library_writes(tmp_path, code):
    path, tensors = tmp_path / "x.safetensors", _tensors(DTYPES[code])
    safetensors.numpy.save_file(tensors, path, {"format": "pt"})
    entries = read_header(path)
    assert set(entries) == set(tensors)
    offsets = [entry.offset for entry in entries.values()]
    assert offsets == sorted(offsets)
    for name, values in tensors.items():
        read = read_tensor(entries[name])
        assert (read.dtype, read.shape) == (values.dtype, values.shape)
        assert read.tobytes() == values.tobytes()
        assert (entries[name].size, entries[name].nbytes) == (values.size, values.nbytes)


@pytest.mark.parametrize("code", DTYPES)
def test_library_reads_what_is_written(tmp_path, code):
    path, tensors = tmp_path / "x.safetensors", _tensors(DTYPES[code])
    header = header_bytes((name, values.dtype, values.shape) for name, values in tensors.items())
    assert len(header) % 8 == 0
    path.write_bytes(header + b"".join(values.tobytes() for values in tensors.values()))
    expected = {name: (code, values.shape, values.tobytes()) for name, values in tensors.items()}
    assert support.read_raw(path) == expected


def test_mixed_dtypes_in_one_file(tmp_path):
    tensors = {code: np.arange(3).astype(dtype) for code, dtype in DTYPES.items()}
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors")
    assert {name: entry.dtype for name, entry in read_header(tmp_path / "x.safetensors").items()} == DTYPES


def test_file_without_tensors_is_empty(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(header_bytes([]))
    assert read_header(path) == {}


def _file(header, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def _f32(start, end, shape=None, dtype="F32"):
    return {"dtype": dtype, "shape": [(end - start) // 4] if shape is None else shape, "data_offsets": [start, end]}


_WHOLE = _file({"a": _f32(0, 8), "b": _f32(8, 16)}, bytes(16))

DAMAGED = {
    "empty file": (b"", "not a safetensors file"),
    "shorter than its length prefix": (b"\x08\x00\x00", "not a safetensors file"),
    "huge header length": (_file(b"{}", length=2**62), "not a safetensors file"),
    "header length over the file": (_file(b"{}", length=3), "truncated inside its header"),
    "truncated header": (_WHOLE[:40], "truncated inside its header"),
    "truncated data": (_WHOLE[:-1], "is truncated"),
    "no data at all": (_WHOLE[:-16], "is truncated"),
    "trailing bytes": (_WHOLE + b"\0", "longer than its header says"),
    "bytes after an empty header": (_file({}, b"\0"), "longer than its header says"),
    "header not JSON": (_file(b"{'a': 1}"), "not valid JSON"),
    "header not UTF-8": (_file(b'{"\xff": 1}'), "not valid JSON"),
    "header nested too deep": (_file(b"[" * 100_000), "not valid JSON"),
    "number of thousands of digits": (_file(b'{"a": ' + b"9" * 5000 + b"}"), "not valid JSON"),
    "header a list": (_file([1]), "not a JSON object"),
    "duplicate tensor": (_file(b'{"a": {}, "a": {}}'), "'a' is given twice"),
    "duplicate key of a tensor": (_file(b'{"a": {"dtype": "F32", "dtype": "F16"}}'), "'dtype' is given twice"),
    "overlapping tensors": (_file({"a": _f32(0, 8), "b": _f32(4, 12)}, bytes(12)), "tensor b is at"),
    "tensors on the same bytes": (_file({"a": _f32(0, 8), "b": _f32(0, 8)}, bytes(8)), "tensor b is at"),
    "hole between tensors": (_file({"a": _f32(0, 8), "b": _f32(12, 16)}, bytes(16)), "tensor b is at"),
    "hole at the start": (_file({"a": _f32(4, 8)}, bytes(8)), "tensor a is at"),
    "more bytes than the shape": (_file({"a": _f32(0, 8, [1])}, bytes(8)), "tensor a is at"),
    "fewer bytes than the shape": (_file({"a": _f32(0, 8, [3])}, bytes(8)), "tensor a is at"),
    "end before start": (_file({"a": _f32(0, 8), "b": _f32(8, 4, [0])}, bytes(8)), "tensor b is at"),
    "unsupported dtype": (_file({"a": _f32(0, 8, [1], "I64")}, bytes(8)), "dtype I64"),
    "dtype not text": (_file({"a": _f32(0, 8, [1], ["F32"])}, bytes(8)), "tensor a has a malformed"),
    "negative shape": (_file({"a": _f32(0, 8, [-1, -2])}, bytes(8)), "tensor a has a malformed"),
    "bool shape": (_file({"a": _f32(0, 4, [True])}, bytes(4)), "tensor a has a malformed"),
    "float shape": (_file({"a": _f32(0, 4, [1.0])}, bytes(4)), "tensor a has a malformed"),
    "shape an object": (_file({"a": _f32(0, 4, {})}, bytes(4)), "tensor a has a malformed"),
    "bool offsets": (_file({"a": {"dtype": "F32", "shape": [0], "data_offsets": [False, False]}}), "malformed"),
    "negative offsets": (_file({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}), "malformed"),
    "one offset": (_file({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4]}}), "malformed"),
    "no dtype": (_file({"a": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4)), "malformed"),
    "tensor not an object": (_file({"a": 1}), "malformed"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_file_is_refused_by_name(tmp_path, kind):
    content, problem = DAMAGED[kind]
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(BadInput) as refusal:
        read_header(path)
    message = str(refusal.value)
    assert message.startswith(f"{path}: ") and problem in message
    assert "; " in message and "\n" not in message


def test_every_truncation_of_a_file_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    for length in range(len(_WHOLE)):
        path.write_bytes(_WHOLE[:length])
        with pytest.raises(BadInput):
            read_header(path)
    path.write_bytes(_WHOLE)
    assert list(read_header(path)) == ["a", "b"]


def test_parse_json_refuses_a_repeated_key_at_any_depth():
    assert parse_json('{"a": {"b": [1, null]}}', "x.json") == {"a": {"b": [1, None]}}
    with pytest.raises(BadInput, match="^x.json: 'b' is given twice"):
        parse_json('{"a": [{"b": 1, "b": 1}]}', "x.json")


def test_file_that_shrank_after_its_header_was_read(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(_WHOLE)
    entry = read_header(path)["b"]
    path.write_bytes(_WHOLE[:-4])
    with pytest.raises(OSError, match="ended at byte"):
        read_tensor(entry)


def test_read_into_takes_the_bytes_at_the_offset(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(bytes(range(10)))
    buffer = bytearray(4)
    with path.open("rb") as file:
        read_into(file.fileno(), 3, memoryview(buffer), path)
    assert bytes(buffer) == bytes([3, 4, 5, 6])
