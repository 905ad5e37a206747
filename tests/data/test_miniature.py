"""The miniature's corpora as documents."""

import pytest

from clinmerge_jax.data.miniature import corpus


def test_the_training_split_is_the_usual_one_and_names_are_distinct():
    for name in ("copying", "base", "clinical", "instruct"):
        found = corpus(name, 1, 20)
        assert found == corpus(name, 1, 20, "train") and len({one.name for one in found}) == 20
    assert all(one.messages and one.text is None for one in corpus("instruct", 1, 5, "test"))
    assert all(one.text and one.messages is None for one in corpus("clinical", 1, 5, "dev"))
    assert corpus("clinical", 1, 5, "dev") != corpus("clinical", 1, 5, "test")


@pytest.mark.parametrize(
    "name, split",
    [("notes", "train"), ("base", "test"), ("copying", "dev"), ("clinical", "valid"), ("instruct", "unseen")],
)
def test_an_unknown_corpus_or_split_is_refused(name, split):
    with pytest.raises(ValueError, match=f"'{name}'.*'{split}'"):
        corpus(name, 1, 5, split)
