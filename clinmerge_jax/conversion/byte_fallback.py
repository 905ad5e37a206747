"""Builds a fast tokenizer from SentencePiece BPE with scores, as in llama2.c and in GGUF files of Llama 2's kind."""

from collections.abc import Collection, Mapping, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

SPACE_MARK = "\u2581"  # sentencepiece's visible space


def merge_rules(pieces: Sequence[tuple[str, float]]) -> list[tuple[str, str]]:
    """The merges with which rank-ordered BPE reproduces SentencePiece, which merges the pair of the best score.

    Every split of a piece into two pieces is a merge. Merges are ranked by the score of the merged piece, highest
    first, then by its position. The two can differ only where two different splits of one piece meet in a text:
    SentencePiece takes the leftmost pair then, BPE the split listed first (shortest left half).

    Args:
      pieces: text and score of each piece that merges may use.
    """
    known = {piece for piece, _ in pieces}
    return [
        (piece[:cut], piece[cut:])
        # The sort is stable, so equal scores stay in their order.
        for piece, _ in sorted(pieces, key=lambda entry: -entry[1])
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]


def build(
    ids: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    unknown: str | None,
    special: Collection[str],
    *,
    space_first: bool = True,
) -> Tokenizer:
    """Builds the fast tokenizer: byte-fallback BPE, with sentencepiece's dummy prefix space.

    Args:
      ids: id by piece, special and byte pieces among them.
      merges: from `merge_rules`.
      unknown: the piece for unknown text.
      special: pieces that are special tokens.
      space_first: whether a space is put before the text.
    """
    made = Tokenizer(
        models.BPE(vocab=dict(ids), merges=list(merges), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    made.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in special])
    replace = normalizers.Replace(" ", SPACE_MARK)
    made.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE_MARK), replace]) if space_first else replace
    steps = [decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if space_first else steps)
    return made
