"""Whole documents side by side in rows of one length. N rows, T tokens."""

import bisect
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from clinmerge_jax.data.batch import Batch
from clinmerge_jax.data.documents import Encoded
from clinmerge_jax.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Packed:
    """What packing made of the documents.

    Attributes:
      documents: how many there were.
      rows: how many rows they fill, of `length` tokens each.
      length: tokens per row.
      tokens: in all rows, without what pads them.
      targets: those of them that are learned.
      truncated: documents that lost tokens at their end.
      dropped: documents of which nothing to learn was left; not among the truncated.
      cut: raw texts that lie in several pieces.
      contents: of each row, the documents that lie in it, by their numbers.
    """

    documents: int
    rows: int
    length: int
    tokens: int
    targets: int
    truncated: int
    dropped: int
    cut: int
    contents: tuple[tuple[int, ...], ...]

    @property
    def fill(self) -> float:
        """The share of the rows that is not padding."""
        return self.tokens / (self.rows * self.length)

    def __str__(self) -> str:
        return (
            f"{self.documents:,} documents in {self.rows:,} rows of {self.length:,} tokens, {self.fill:.1%} full,"
            f" {self.targets:,} of {self.tokens:,} tokens learned; {self.truncated:,} truncated, {self.dropped:,}"
            f" dropped, {self.cut:,} cut into pieces"
        )


def pack(encoded: Sequence[Encoded], length: int, packing: bool = True) -> tuple[Batch, Packed]:
    """Puts documents into rows; each is a segment of its own, with positions from 0.

    The longest come first, each into the row with the least room that still holds it (best fit decreasing: Johnson et
    al. 1974, doi:10.1137/0203025: at most 11/9 of the fewest rows possible, and 4), of equal ones the earlier first.
    One too long for a row is truncated at its end; but raw text, all of which is learned, is cut into pieces. A piece
    starts with the last token of the piece before, so that every token is still learned, and once.

    Args:
      encoded: the documents.
      length: tokens per row, 2 or more.
      packing: False gives each document or piece a row of its own, in the order they came in.

    Returns:
      The rows, a Batch of [N, T], and what was made of the documents.

    Raises:
      BadInput: nothing would be learned, or a row has no room for a token and what it is learned from.
    """
    if length < 2:
        raise BadInput(f"config.length: is {length}; give 2 or more")
    pieces: list[Encoded] = []
    origins: list[int] = []
    truncated = dropped = cut = 0
    for number, document in enumerate(encoded):
        parts = list(_fitted(document, length))
        pieces += parts
        origins += [number] * len(parts)
        cut += len(parts) > 1
        dropped += not parts
        truncated += len(parts) == 1 and len(document.tokens) > length
    if not pieces:
        raise BadInput(
            f"config.length: of {len(encoded)} documents none has a token to learn within {length} tokens; give a"
            " larger length, or longer documents"
        )
    rows = _best_fit([len(piece.tokens) for piece in pieces], length) if packing else [[i] for i in range(len(pieces))]
    shape = len(rows), length
    batch = Batch(
        tokens=np.zeros(shape, np.int32),
        targets=np.zeros(shape, bool),
        positions=np.zeros(shape, np.int32),
        segments=np.zeros(shape, np.int32),
    )
    counting = np.arange(length, dtype=np.int32)
    for row, members in enumerate(rows):
        start = 0
        for segment, member in enumerate(members, start=1):
            size = len(pieces[member].tokens)
            place = row, slice(start, start + size)
            batch.tokens[place] = pieces[member].tokens
            batch.targets[place] = pieces[member].targets
            batch.positions[place] = counting[:size]
            batch.segments[place] = segment
            start += size
    tokens, targets = int(np.count_nonzero(batch.segments)), int(np.count_nonzero(batch.targets))
    contents = tuple(tuple(dict.fromkeys(origins[member] for member in members)) for members in rows)
    return batch, Packed(len(encoded), len(rows), length, tokens, targets, truncated, dropped, cut, contents)


def _fitted(document: Encoded, length: int) -> Iterator[Encoded]:
    """What becomes of a document: itself, its start, its pieces, or nothing."""
    tokens, targets = document.tokens, document.targets
    raw = bool(targets[1:].all())
    last = len(tokens) - 1 if raw else 1
    for start in range(0, last, length - 1):
        piece = slice(start, start + length)
        learned = targets[piece].copy()
        learned[0] = False
        if learned.any():
            yield Encoded(tokens[piece], learned)


def _best_fit(sizes: Sequence[int], length: int) -> list[list[int]]:
    """Which documents lie in each row."""
    rows: list[list[int]] = []
    rooms: list[int] = []  # the amounts of room that some row has, ascending
    with_room: dict[int, list[int]] = {}  # the rows that have it
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
