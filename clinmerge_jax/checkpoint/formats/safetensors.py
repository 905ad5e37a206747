"""The safetensors file format, read and written by byte ranges.

The `safetensors` library maps files into memory, and mapped pages count as resident. Merging in bounded memory needs
plain reads into separate buffers, so the header is parsed here. Format: the header length in eight little-endian bytes,
a JSON header, then the tensors' bytes without gaps.
"""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

from clinmerge_jax.errors import BadInput

DTYPES: Mapping[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
DTYPE_CODES: Mapping[np.dtype, str] = {dtype: code for code, dtype in DTYPES.items()}

_MAX_HEADER_BYTES = 100_000_000  # the library's own limit


@dataclasses.dataclass(frozen=True)
class TensorEntry:
    """The location, dtype and shape of one tensor in a file."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    file: pathlib.Path
    offset: int  # bytes from the start of the file

    @property
    def size(self) -> int:
        """The number of entries."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of bytes."""
        return self.size * self.dtype.itemsize


def parse_json(text: str | bytes, source: pathlib.Path | str) -> Any:
    """Parses JSON and refuses repeated keys, which the standard parser drops silently.

    Raises:
      BadInput: the text is not JSON, or an object repeats a key.
    """

    def pairs(items):
        keys = [key for key, _ in items]
        if len(set(keys)) != len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise BadInput(f"{source}: {twice!r} is given twice; keep one of the two")
        return dict(items)

    try:
        return json.loads(text, object_pairs_hook=pairs)
    except BadInput:
        raise
    except (ValueError, RecursionError) as error:  # bytes, syntax, numbers of thousands of digits, nesting
        raise BadInput(f"{source}: is not valid JSON ({error}); fetch or write the file again") from error


def _nothing(name: str, shape: Sequence[int]) -> bool:
    return False


def read_header(
    path: pathlib.Path,
    dtypes: Mapping[str, np.dtype] = DTYPES,
    left_out: Callable[[str, Sequence[int]], bool] = _nothing,
) -> dict[str, TensorEntry]:
    """Reads the header of one file: its tensors by name, in the order of their bytes.

    Args:
      path: the file.
      dtypes: the dtypes that its tensors may have, by safetensors code.
      left_out: function of name and shape, true for tensors to skip whatever their dtype.

    Raises:
      BadInput: the file is truncated or not a safetensors file, a tensor has another dtype, or the header does not
        describe exactly the bytes that follow it.
    """
    file_size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > _MAX_HEADER_BYTES:
            raise BadInput(f"{path}: is not a safetensors file (no readable header length); fetch it again")
        if 8 + length > file_size:
            raise BadInput(f"{path}: is truncated inside its header; fetch it again")
        header = parse_json(file.read(length), path)
    if not isinstance(header, dict):
        raise BadInput(f"{path}: its header is not a JSON object; fetch it again")
    header.pop("__metadata__", None)
    entries = [_entry(path, name, fields, 8 + length, dtypes, left_out) for name, fields in header.items()]
    entries.sort(key=lambda item: (item[0].offset, item[1]))
    position = 8 + length
    for entry, end, _ in entries:
        if entry.offset != position or end - entry.offset != entry.nbytes:
            raise BadInput(
                f"{path}: tensor {entry.name} is at bytes {entry.offset}:{end}, but its shape and its neighbours"
                f" require {position}:{position + entry.nbytes}; the header is damaged, fetch the file again"
            )
        position = end
    if position != file_size:
        kind = "truncated" if file_size < position else "longer than its header says"
        raise BadInput(f"{path}: is {kind} ({file_size} bytes, but the header requires {position}); fetch it again")
    return {entry.name: entry for entry, _, kept in entries if kept}


def _entry(
    path: pathlib.Path,
    name: str,
    fields: Any,
    data_start: int,
    dtypes: Mapping[str, np.dtype],
    left_out: Callable[[str, Sequence[int]], bool],
) -> tuple[TensorEntry, int, bool]:
    """One tensor, the end of its bytes in the file, and whether it is kept."""
    try:
        code, shape, (start, end) = fields["dtype"], fields["shape"], fields["data_offsets"]
        whole = isinstance(code, str) and isinstance(shape, list)
        whole = whole and all(type(number) is int and number >= 0 for number in (*shape, start, end))
    except (TypeError, KeyError, ValueError):
        whole = False
    if not whole:
        raise BadInput(f"{path}: tensor {name} has a malformed header entry; fetch the file again")
    if left_out(name, shape):
        size = max(0, end - start)
        return TensorEntry(name, np.dtype(np.uint8), (size,), path, data_start + start), data_start + end, False
    if code not in dtypes:
        raise BadInput(
            f"{path}: tensor {name} has dtype {code}; supported are {', '.join(dtypes)}: save it in one of them"
        )
    return TensorEntry(name, dtypes[code], tuple(shape), path, data_start + start), data_start + end, True


def header_bytes(tensors: Iterable[tuple[str, np.dtype, tuple[int, ...]]]) -> bytes:
    """Length prefix and header for tensors that will be written in this order without gaps.

    Args:
      tensors: name, dtype and shape of each.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, dtype, shape in tensors:
        end = position + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPE_CODES[dtype], "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors start aligned to eight bytes
    return len(text).to_bytes(8, "little") + text


def read_into(file_descriptor: int, offset: int, buffer: memoryview, path: pathlib.Path) -> None:
    """Fills a buffer with the bytes of a file from `offset` on.

    Raises:
      OSError: the file ends early, so it was changed after its header was read.
    """
    done = 0
    while done < len(buffer):
        count = os.preadv(file_descriptor, [buffer[done:]], offset + done)
        if count == 0:
            raise OSError(f"{path}: ended at byte {offset + done} while it was being read")
        done += count


def read_tensor(entry: TensorEntry) -> np.ndarray:
    """Reads one whole tensor into memory of its own (not mapped)."""
    values = np.empty(entry.shape, entry.dtype)
    descriptor = os.open(entry.file, os.O_RDONLY)
    try:
        read_into(descriptor, entry.offset, memoryview(values.reshape(-1).view(np.uint8)), entry.file)
    finally:
        os.close(descriptor)
    return values
