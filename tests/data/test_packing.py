"""Sequences hold the documents, each once, whole, apart from the others."""

import numpy as np
import pytest

from clinmerge_jax.data.documents import Encoded
from clinmerge_jax.data.packing import best_fit, pack
from clinmerge_jax.data.sequences import joined
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


def _each_in_a_row(sequences, length=LENGTH):
    return sequences.batch([[index] for index in range(len(sequences))], (len(sequences), length))


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
@pytest.mark.parametrize("full_rows", [True, False])
def test_every_document_lies_in_the_sequences_once_and_whole(seed, full_rows):
    documents = _answers(np.random.default_rng(seed), 200)
    sequences, report = pack(documents, LENGTH, full_rows)
    batch = _each_in_a_row(sequences)
    assert [leaf.dtype for leaf in (batch.tokens, batch.positions, batch.segments)] == [np.int32] * 3
    assert batch.targets.dtype == bool
    found = _segments(batch)
    assert found == _content(documents[number] for number in report.contents)
    assert sorted(report.contents) == list(range(200)) and (full_rows or report.contents == tuple(range(200)))
    assert report.tokens == sum(len(document.tokens) for document in documents)
    assert report.targets == sum(int(document.targets.sum()) for document in documents)
    assert (report.documents, report.sequences, report.cut) == (200, len(sequences), 0)
    assert [tuple(tokens) for tokens in sequences.split()] == [tokens for tokens, _ in found]


def test_full_rows_are_few_and_the_same_each_time():
    documents = _answers(np.random.default_rng(0), 500)
    sequences, report = pack(documents, LENGTH, full_rows=True)
    used = np.sort(sequences.sizes)
    assert used[0] + used[1] > LENGTH  # no two rows would fit into one
    assert len(sequences) <= 11 / 9 * np.ceil(report.tokens / LENGTH) + 4
    assert pack(documents, LENGTH, full_rows=True)[0].digest() == sequences.digest()


def test_documents_that_fit_exactly_share_a_row():
    assert best_fit([3, 5, 2, 6], 8) == [[3, 2], [1, 0]]
    sequences, _ = pack([_raw(size) for size in (3, 5, 2, 6)], 8, full_rows=True)
    batch = _each_in_a_row(sequences, 8)
    assert batch.segments.tolist() == [[1] * 6 + [2] * 2, [1] * 5 + [2] * 3]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 5, 0, 1], [0, 1, 2, 3, 4, 0, 1, 2]]


def test_sequences_side_by_side_have_segments_of_their_own():
    full, _ = pack([_raw(size) for size in (3, 5, 2, 6)], 8, full_rows=True)
    single, _ = pack([_raw(4)], 8)
    both = joined(full, single)
    assert both.sizes.tolist() == [8, 8, 4]
    batch = both.batch([[0, 2], [], [1]], (4, 13))
    assert batch.segments[0].tolist() == [1] * 6 + [2] * 2 + [3] * 4 + [0]
    assert not batch.segments[[1, 3]].any()
    assert _segments(batch) == _content(_raw(size) for size in (6, 2, 4, 5, 3))
    with pytest.raises(ValueError):
        both.batch([[0, 1]], (1, 13))


@pytest.mark.parametrize("size", [8, 9, 15, 16, 22, 23, 100])
def test_raw_text_longer_than_a_row_is_cut_and_every_token_is_learned_once(size):
    sequences, report = pack([_raw(size)], 8)
    learned = sequences.tokens[sequences.targets]
    assert sorted(learned) == list(range(2, size + 1))
    before = np.roll(sequences.tokens, 1)[sequences.targets]
    np.testing.assert_array_equal(before, learned - 1)  # each from the token that stands before it in the text
    assert report.cut == int(size > 8) and sequences.sizes.max() == min(size, 8)
    assert (sequences.segments == 1).all() and set(report.contents) == {0}


def test_an_example_that_is_too_long_is_the_callers_mistake():
    targets = np.arange(12) >= 4
    fits, too_long = (Encoded(np.arange(1, size + 1, dtype=np.int32), targets[:size]) for size in (8, 9))
    _, report = pack([fits, fits], 8)
    assert str(report) == ("2 documents in 2 sequences of up to 8 tokens; 8 of 16 tokens learned; 0 cut into pieces")
    with pytest.raises(ValueError, match="an example of 9 tokens does not fit 8"):
        pack([fits, too_long], 8)


def test_a_single_token_has_nothing_to_learn():
    sequences, report = pack([_raw(1), _raw(3)], 8)
    assert report.contents == (1,) and len(sequences) == 1
    with pytest.raises(BadInput, match="config.task: none of the 1 documents has a token to learn"):
        pack([_raw(1)], 8)


def test_a_row_must_hold_two_tokens():
    with pytest.raises(BadInput, match="config.length: is 1; give 2 or more"):
        pack([_raw(4)], 1)
    assert [tokens.tolist() for tokens in pack([_raw(4)], 2)[0].split()] == [[1, 2], [2, 3], [3, 4]]
