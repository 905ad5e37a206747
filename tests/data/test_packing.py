"""Packed rows hold the documents, each once, whole, apart from the others."""

import numpy as np
import pytest

from clinmerge_jax.data.documents import Encoded
from clinmerge_jax.data.packing import pack
from clinmerge_jax.errors import BadInput

LENGTH = 32


def _answers(rng, count, longest=LENGTH):
    """Documents of random lengths with a random part learned, never all of it; no token is 0."""
    documents = []
    for size in rng.integers(3, longest + 1, count):
        targets = rng.random(size) < 0.5
        targets[:2], targets[-1] = False, True
        documents.append(Encoded(rng.integers(1, 1000, size, dtype=np.int32), targets))
    return documents


def _raw(size):
    return Encoded(np.arange(1, size + 1, dtype=np.int32), np.arange(size) > 0)


def _segments(batch):
    """Every document that the rows hold, in order, after checking how it lies there."""
    found = []
    for tokens, targets, positions, segments in zip(batch.tokens, batch.targets, batch.positions, batch.segments):
        used = int(np.count_nonzero(segments))
        assert not segments[used:].any() and not tokens[used:].any() and not targets[used:].any()
        assert not positions[used:].any()
        assert sorted(set(segments[:used])) == list(range(1, segments.max() + 1))
        assert (np.diff(segments[:used]) >= 0).all()
        for segment in range(1, segments.max() + 1):
            mine = segments == segment
            np.testing.assert_array_equal(positions[mine], np.arange(mine.sum()))
            assert not targets[mine][0]
            found.append((tuple(tokens[mine]), tuple(targets[mine])))
    return found


def _content(documents):
    return [(tuple(document.tokens), tuple(document.targets)) for document in documents]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("packing", [True, False])
def test_every_document_lies_in_the_rows_once_and_whole(seed, packing):
    documents = _answers(np.random.default_rng(seed), 200)
    batch, report = pack(documents, LENGTH, packing)
    assert batch.tokens.shape == (report.rows, LENGTH)
    assert [leaf.dtype for leaf in (batch.tokens, batch.positions, batch.segments)] == [np.int32] * 3
    assert batch.targets.dtype == bool
    found = _segments(batch)
    assert (sorted(found) == sorted(_content(documents))) if packing else (found == _content(documents))
    assert report.tokens == sum(len(document.tokens) for document in documents)
    assert report.targets == sum(int(document.targets.sum()) for document in documents)
    assert (report.truncated, report.dropped, report.cut) == (0, 0, 0)


def test_packed_rows_are_few_and_the_same_each_time():
    documents = _answers(np.random.default_rng(0), 500)
    batch, report = pack(documents, LENGTH)
    used = np.sort(np.count_nonzero(batch.segments, axis=1))
    assert used[0] + used[1] > LENGTH  # no two rows would fit into one
    assert report.rows <= 11 / 9 * np.ceil(report.tokens / LENGTH) + 4
    np.testing.assert_array_equal(pack(documents, LENGTH)[0].tokens, batch.tokens)


def test_documents_that_fit_exactly_share_a_row():
    batch, report = pack([_raw(size) for size in (3, 5, 2, 6)], 8)
    assert (report.rows, report.fill) == (2, 1.0)
    assert batch.segments.tolist() == [[1] * 6 + [2] * 2, [1] * 5 + [2] * 3]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 5, 0, 1], [0, 1, 2, 3, 4, 0, 1, 2]]


@pytest.mark.parametrize("size", [8, 9, 15, 16, 22, 23, 100])
def test_raw_text_longer_than_a_row_is_cut_and_every_token_is_learned_once(size):
    batch, report = pack([_raw(size)], 8, packing=False)
    learned = batch.tokens[batch.targets]
    assert sorted(learned) == list(range(2, size + 1))
    before = np.roll(batch.tokens, 1, axis=1)[batch.targets]
    np.testing.assert_array_equal(before, learned - 1)  # each from the token that stands before it in the text
    assert (report.cut, report.truncated, report.dropped) == (int(size > 8), 0, 0)
    assert (batch.segments.max(axis=1) == 1).all()


def test_long_conversations_are_truncated_and_counted_and_dropped_where_no_answer_is_left():
    size = 12
    early, late = np.zeros(size, bool), np.zeros(size, bool)
    early[4:], late[8:] = True, True
    tokens = np.arange(1, size + 1, dtype=np.int32)
    fits = Encoded(tokens[:6], early[:6])
    batch, report = pack([Encoded(tokens, early), Encoded(tokens, late), fits], 8, packing=False)
    assert _segments(batch) == _content([Encoded(tokens[:8], early[:8]), fits])
    assert (report.documents, report.rows, report.truncated, report.dropped, report.cut) == (3, 2, 1, 1, 0)
    assert str(report) == (
        "3 documents in 2 rows of 8 tokens, 87.5% full, 6 of 14 tokens learned;"
        " 1 truncated, 1 dropped, 0 cut into pieces"
    )
    with pytest.raises(BadInput, match="config.length: of 2 documents none has a token to learn within 8 tokens"):
        pack([Encoded(tokens, late)] * 2, 8)


def test_a_row_must_hold_two_tokens():
    with pytest.raises(BadInput, match="config.length: is 1; give 2 or more"):
        pack([_raw(4)], 1)
    assert pack([_raw(4)], 2)[0].tokens.tolist() == [[1, 2], [2, 3], [3, 4]]
