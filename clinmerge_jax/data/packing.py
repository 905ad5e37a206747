"""Make sequences from encoded documents: examples, pieces of long raw text, or full rows of several of these."""

import bisect
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from clinmerge_jax.data.documents import Encoded
from clinmerge_jax.data.sequences import Sequences, sequences_of
from clinmerge_jax.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Packed:
    """Statistics of packed documents.

    Attributes:
      documents: number of documents.
      sequences: number of sequences made from them; a step takes `batch_size` of these.
      tokens: number of tokens in all sequences.
      targets: number of tokens that are learned.
      longest: number of tokens of the longest sequence.
      cut: number of raw texts cut into several pieces.
      contents: the document number of every segment of every sequence, in order.
    """

    documents: int
    sequences: int
    tokens: int
    targets: int
    longest: int
    cut: int
    contents: tuple[int, ...]

    def __str__(self) -> str:
        return (
            f"{self.documents:,} documents in {self.sequences:,} sequences of up to {self.longest:,} tokens;"
            f" {self.targets:,} of {self.tokens:,} tokens learned; {self.cut:,} cut into pieces"
        )


def pack(encoded: Sequence[Encoded], length: int, full_rows: bool = False) -> tuple[Sequences, Packed]:
    """Makes sequences of at most `length` tokens.

    Raw text, all of which is learned, is cut into pieces if it is longer. A piece starts with the last token of the
    piece before it, so every token is still learned exactly once. Documents without a target after their first token,
    such as a single token, are left out.

    Args:
      encoded: the documents. All except raw text must fit `length`; the caller ensures this when encoding.
      length: the maximum number of tokens, 2 or more.
      full_rows: fills whole rows with documents or pieces (`best_fit`), each row a sequence. Otherwise each document or
        piece is a sequence of its own, in the given order.

    Returns:
      The sequences, and statistics of what was packed.

    Raises:
      BadInput: nothing would be learned, or the length is less than 2.
      ValueError: a document that is not raw text is too long.
    """
    if length < 2:
        raise BadInput(f"config.length: is {length}; give 2 or more")
    pieces: list[Encoded] = []
    origins: list[int] = []
    cut = 0
    for number, document in enumerate(encoded):
        parts = list(_pieces(document, length))
        pieces += parts
        origins += [number] * len(parts)
        cut += len(parts) > 1
    if not pieces:
        raise BadInput(f"config.task: none of the {len(encoded)} documents has a token to learn; give longer ones")
    sizes = [len(piece.tokens) for piece in pieces]
    groups = best_fit(sizes, length) if full_rows else [[index] for index in range(len(pieces))]
    sequences = sequences_of([[pieces[index] for index in group] for group in groups])
    contents = tuple(origins[index] for group in groups for index in group)
    return sequences, Packed(
        documents=len(encoded),
        sequences=len(sequences),
        tokens=len(sequences.tokens),
        targets=int(np.count_nonzero(sequences.targets)),
        longest=int(sequences.sizes.max()),
        cut=cut,
        contents=contents,
    )


def _pieces(document: Encoded, length: int) -> Iterator[Encoded]:
    """Yields the document or its pieces; nothing if there is no token to learn."""
    tokens, targets = document.tokens, document.targets
    if len(tokens) <= length:
        if targets[1:].any():
            yield document
        return
    if not targets[1:].all():
        raise ValueError(f"an example of {len(tokens)} tokens does not fit {length}, and only raw text may be cut")
    for start in range(0, len(tokens) - 1, length - 1):
        piece = slice(start, start + length)
        yield Encoded(tokens[piece], np.arange(len(tokens[piece])) > 0)


def best_fit(sizes: Sequence[int], length: int) -> list[list[int]]:
    """Assigns sequences to rows by best fit decreasing; returns the sequence numbers of each row.

    Sequences are placed longest first, the earlier of equals; each goes into the row with the least room that still
    holds it. The number of rows is at most 11/9 of the optimum plus 4 (Johnson et al. 1974, doi:10.1137/0203025).

    Args:
      sizes: tokens of each sequence, at most `length`.
      length: tokens of a row.
    """
    rows: list[list[int]] = []
    rooms: list[int] = []  # the distinct amounts of free room in the rows, ascending
    with_room: dict[int, list[int]] = {}  # the rows with that room
    for member in sorted(range(len(sizes)), key=lambda member: -sizes[member]):
        place = bisect.bisect_left(rooms, sizes[member])
        if place == len(rooms):
            row, room = len(rows), length
            rows.append([])
        else:
            room = rooms[place]
            row = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[place]
        rows[row].append(member)
        room -= sizes[member]
        if room not in with_room:
            with_room[room] = []
            bisect.insort(rooms, room)
        with_room[room].append(row)
    return rows
