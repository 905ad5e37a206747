"""SHA-256 of files, computed while they are read for another purpose."""

import concurrent.futures
import hashlib
import os
import pathlib
from collections.abc import Iterable

from clinmerge_jax.checkpoint.formats.safetensors import read_into

_CHUNK = 8 << 20


class FileDigest:
    """The SHA-256 of one file, computed from the pieces that a reader reads.

    A piece that begins where the digest ends is added; other pieces are ignored, and `finish` reads the missing bytes
    itself. A reader that goes through the file in order therefore causes no extra read.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._hash = hashlib.sha256()
        self._position = 0

    @property
    def position(self) -> int:
        """Bytes digested so far."""
        return self._position

    def update(self, offset: int, data: memoryview) -> None:
        """Adds the bytes at `offset` of the file if they continue the digest."""
        if offset == self._position:
            self._hash.update(data)
            self._position += len(data)

    def read_header(self) -> None:
        """Adds the safetensors header if the digest is empty, so that the tensors after it continue the digest."""
        if self._position == 0:
            with self.path.open("rb") as file:
                prefix = file.read(8)
                self.update(0, memoryview(prefix + file.read(int.from_bytes(prefix, "little"))))

    def finish(self) -> str:
        """Reads the bytes that are not digested yet and returns the hexadecimal digest."""
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            size = os.fstat(descriptor).st_size
            buffer = memoryview(bytearray(min(_CHUNK, size)))
            while self._position < size:
                piece = buffer[: min(_CHUNK, size - self._position)]
                read_into(descriptor, self._position, piece, self.path)
                self.update(self._position, piece)
        finally:
            os.close(descriptor)
        return self._hash.hexdigest()


def finish_all(digests: Iterable[FileDigest]) -> dict[str, str]:
    """Finishes several digests in parallel and returns the hexadecimal digest of each file by its path."""
    with concurrent.futures.ThreadPoolExecutor() as pool:  # hashing releases the interpreter lock
        jobs = {str(digest.path): pool.submit(digest.finish) for digest in digests}
        return {path: job.result() for path, job in jobs.items()}


def sha256(path: pathlib.Path) -> str:
    """The hexadecimal SHA-256 of a file."""
    return FileDigest(path).finish()
