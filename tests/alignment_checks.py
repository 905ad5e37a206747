"""What an alignment of vocabularies must give, worked out from the tokenizers' own ids."""

from collections.abc import Callable, Mapping, Sequence

import tokenizers

from clinmerge_jax.merging.vocabulary.alignment import Vocabulary

# The rules for a row that a model lacks: from a token, the models that have it and the base to those it comes from.


def rule_owner(token: str, owners: Sequence[str], base: str) -> Sequence[str]:
    """The base, else the first owner."""
    return owners[:1] if base not in owners else [base]


def rule_mean(token: str, owners: Sequence[str], base: str) -> Sequence[str]:
    """All owners."""
    return owners


def rule_auto(token: str, owners: Sequence[str], base: str) -> Sequence[str]:
    """The base, else all owners."""
    return [base] if base in owners else owners


def check_rows(
    vocabulary: Vocabulary,
    parents: Mapping[str, tokenizers.Tokenizer],
    base: str,
    rule: Callable[[str, Sequence[str], str], Sequence[str]],
) -> None:
    """Every token's donors in every model, against the tokenizers' own ids."""
    assert len(vocabulary.tokens) <= vocabulary.size
    for row, token in enumerate(vocabulary.tokens):
        owners = [name for name, parent in parents.items() if parent.token_to_id(token) is not None]
        for name in parents:
            chosen = [name] if name in owners else rule(token, owners, base)
            expected = tuple((one, parents[one].token_to_id(token)) for one in chosen)
            assert vocabulary.donors(name, row) == expected, (name, token)


def result_tokenizer(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    """The tokenizer that the result gets."""
    content = vocabulary.files["tokenizer.json"]
    return tokenizers.Tokenizer.from_str((content if isinstance(content, bytes) else content.read_bytes()).decode())
