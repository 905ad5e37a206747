"""The GGUF file format of llama.cpp: metadata, and tensors read by rows.

Format (version 2 and 3, little-endian; the specification is docs/gguf.md of ggml): magic, version, number of tensors
and of metadata entries; the entries; name, dimensions, type and offset of every tensor; then their bytes, aligned.

The `gguf` library dequantizes the block formats. The header is parsed here, and every length in it is checked against
the size of the file. The library's own reader maps the whole file, so that every page read counts as resident memory;
it takes 4 s for a vocabulary of 49,152 tokens, and it loops over whatever length a damaged array states.
"""

import dataclasses
import math
import os
import pathlib
import re
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

import gguf
import ml_dtypes
import numpy as np

from clinmerge_jax.checkpoint.formats.safetensors import read_into
from clinmerge_jax.errors import BadInput

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32  # bytes, unless general.alignment states another
_MAX_DIMENSIONS = 4

_STRING, _ARRAY, _FLOAT32 = 8, 9, 6
_SCALARS = {
    0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", _FLOAT32: "<f4", 7: "?", 10: "<u8", 11: "<i8",
    12: "<f8",
}  # fmt: skip

# Unquantized types; all others are blocks that the library dequantizes to float32.
PLAIN: Mapping[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_KINDS = {kind.value: kind.name for kind in gguf.GGMLQuantizationType}
QUANTIZED = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")


@dataclasses.dataclass(frozen=True)
class GgufTensor:
    """The location and the storage type of one tensor.

    Attributes:
      name: its name in llama.cpp.
      kind: the name of its type, one of `PLAIN` or `QUANTIZED`.
      shape: its shape in NumPy's order, the reverse of the file's.
      file: its file.
      offset: bytes from the start of the file.
      row_bytes: bytes of one row; of a vector, all its bytes.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    file: pathlib.Path
    offset: int
    row_bytes: int

    @property
    def rows(self) -> int:
        """The number of rows; 1 for a vector."""
        return math.prod(self.shape[:-1])

    @property
    def size(self) -> int:
        """The number of values."""
        return math.prod(self.shape)

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the values that `dequantize` returns."""
        return PLAIN.get(self.kind, np.dtype(np.float32))


@dataclasses.dataclass(frozen=True)
class Gguf:
    """The GGUF file or files of a model, opened without reading tensors.

    Attributes:
      files: the files, in order.
      metadata: the metadata of the first file by key: strings, numbers, flags, and lists of these.
      tensors: the tensors of all files by name, in the order of their bytes.
    """

    files: tuple[pathlib.Path, ...]
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def is_gguf(path: pathlib.Path) -> bool:
    """Whether a file begins with the magic bytes of GGUF."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def open_gguf(path: pathlib.Path) -> Gguf:
    """Reads the header of a GGUF file, or of all files of a split model (NAME-00001-of-00003.gguf).

    Raises:
      BadInput: a file is missing, damaged or truncated, or holds a type that is not supported.
    """
    metadata, tensors = _read_file(path)
    count = metadata.get("split.count", 0)
    if not isinstance(count, int) or count <= 1:
        return Gguf((path,), metadata, tensors)
    named = re.fullmatch(r"(.+)-\d{5}-of-(\d{5})\.gguf", path.name)
    if named is None or int(named[2]) != count:
        raise BadInput(f"{path}: is one of {count} files, but is not named NAME-00001-of-{count:05d}.gguf; rename them")
    files = [path.with_name(f"{named[1]}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise BadInput(f"{path}: is one of {count} files, and {missing.name} is missing; fetch it too")
    parts = [_read_file(file) for file in files]
    joined: dict[str, GgufTensor] = {}
    for file, (_, part) in zip(files, parts):
        twice = next((name for name in part if name in joined), None)
        if twice is not None:
            raise BadInput(f"{file}: tensor {twice} is also in {joined[twice].file.name}; fetch the files again")
        joined |= part
    return Gguf(tuple(files), parts[0][0], joined)


class _Header:
    """Reads a header field by field, and refuses lengths beyond the end of the file."""

    def __init__(self, file: BinaryIO, path: pathlib.Path):
        self._file = file
        self.path = path
        self._left = path.stat().st_size
        self.position = 0

    def take(self, count: int) -> bytes:
        if count > self._left:
            raise BadInput(f"{self.path}: ends inside its header; it is truncated or damaged, fetch it again")
        self._left -= count
        self.position += count
        return self._file.read(count)

    def number(self, code: str) -> int:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def count(self, least: int) -> int:
        """Reads the number of items that take at least `least` bytes each."""
        count = self.number("Q")
        if count * least > self._left:
            raise BadInput(f"{self.path}: declares more entries than it has bytes for; it is damaged, fetch it again")
        return count

    def text(self) -> str:
        raw = self.take(self.count(1))
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise BadInput(
                f"{self.path}: a text at byte {self.position - len(raw)} of its header is not UTF-8; fetch it again"
            ) from error

    def value(self, kind: int, nested: bool = False) -> Any:
        if kind in _SCALARS:
            return _plain(np.frombuffer(self.take(np.dtype(_SCALARS[kind]).itemsize), _SCALARS[kind]), kind)[0]
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY or nested:
            raise BadInput(
                f"{self.path}: has metadata of an unknown type ({kind}); it is damaged, or of a newer version"
            )
        inner = self.number("I")
        if inner in _SCALARS:
            width = np.dtype(_SCALARS[inner]).itemsize
            return _plain(np.frombuffer(self.take(self.count(width) * width), _SCALARS[inner]), inner)
        least = struct.calcsize("<Q")  # bytes of the shortest text, its length field
        return [self.value(inner, nested=True) for _ in range(self.count(least))]


def _plain(values: np.ndarray, kind: int) -> list[Any]:
    """Values as Python numbers; a float32 becomes the shortest decimal equal to it (1e-05, not 9.99999974e-06)."""
    return [float(str(value)) for value in values] if kind == _FLOAT32 else values.tolist()


def _read_file(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    with path.open("rb") as file:
        header = _Header(file, path)
        if path.stat().st_size < len(MAGIC) or header.take(len(MAGIC)) != MAGIC:
            raise BadInput(f"{path}: is not a GGUF file (wrong first bytes); give one, or fetch it again")
        version = header.number("I")
        if version not in _VERSIONS:
            kind = "big-endian" if version >= 1 << 16 else f"version {version}"
            raise BadInput(
                f"{path}: is {kind}; only little-endian files of version 2 and 3 are supported: convert it again"
            )
        smallest = struct.calcsize("<QI")  # bytes of the smallest tensor or metadata record: a text's length and a type
        tensor_count, entry_count = header.count(smallest), header.count(smallest)
        metadata: dict[str, Any] = {}
        for _ in range(entry_count):
            key = header.text()
            if key in metadata:
                raise BadInput(f"{path}: has {key} twice; it is damaged, fetch it again")
            metadata[key] = header.value(header.number("I"))
        records = [_record(header) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if type(alignment) is not int or alignment < 1:
        raise BadInput(f"{path}: general.alignment is {alignment!r}; it is damaged, fetch it again")
    start = -(-header.position // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for name, shape, type_id, offset in sorted(records, key=lambda record: record[3]):
        if name in tensors:
            raise BadInput(f"{path}: holds tensor {name} twice; it is damaged, fetch it again")
        tensors[name] = _tensor(path, name, shape, type_id, start + offset)
    return metadata, tensors


def _record(header: _Header) -> tuple[str, tuple[int, ...], int, int]:
    name = header.text()
    dimensions = header.number("I")
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise BadInput(f"{header.path}: tensor {name} has {dimensions} dimensions; it is damaged, fetch it again")
    shape = tuple(reversed([header.number("Q") for _ in range(dimensions)]))
    return name, shape, header.number("I"), header.number("Q")


def _tensor(path: pathlib.Path, name: str, shape: tuple[int, ...], type_id: int, offset: int) -> GgufTensor:
    kind = _KINDS.get(type_id, str(type_id))
    if kind not in PLAIN and kind not in QUANTIZED:
        raise BadInput(
            f"{path}: tensor {name} has type {kind}; {', '.join((*PLAIN, *QUANTIZED))} are supported: give a file in"
            " one of them"
        )
    values, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    if not all(shape) or shape[-1] % values:
        raise BadInput(f"{path}: tensor {name} of type {kind} has shape {list(shape)}; it is damaged, fetch it again")
    tensor = GgufTensor(name, kind, shape, path, offset, shape[-1] // values * nbytes)
    end, size = offset + tensor.rows * tensor.row_bytes, path.stat().st_size
    if end > size:
        raise BadInput(f"{path}: is truncated ({size} bytes where tensor {name} ends at {end}); fetch it again")
    return tensor


def dequantize(raw: np.ndarray, kind: str) -> np.ndarray:
    """Converts the bytes of some rows to values; the `gguf` library dequantizes blocks.

    Args:
      raw: uint8 [rows, bytes of a row].
      kind: the name of the tensor's type.

    Returns:
      [rows, values of a row], in the plain type's dtype or in float32.
    """
    if kind in PLAIN:
        return raw.view(PLAIN[kind])
    with np.errstate(invalid="ignore", over="ignore"):  # from damaged scales; the caller checks the values
        return gguf.dequantize(raw, gguf.GGMLQuantizationType[kind])


def read_whole(tensor: GgufTensor) -> np.ndarray:
    """Reads a whole small tensor, in its shape."""
    raw = np.empty((tensor.rows, tensor.row_bytes), np.uint8)
    descriptor = os.open(tensor.file, os.O_RDONLY)
    try:
        read_into(descriptor, tensor.offset, memoryview(raw.reshape(-1)), tensor.file)
    finally:
        os.close(descriptor)
    return dequantize(raw, tensor.kind).reshape(tensor.shape)
