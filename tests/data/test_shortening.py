"""What is too long loses the end of its source."""

import pytest
import support

from clinmerge_jax.checkpoint.tokenizers.tokenizer import load_tokenizer
from clinmerge_jax.data.shortening import fit, longest_source, with_content, without_end


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shortening")
    support.write_tokenizer(folder)
    return load_tokenizer(folder, "config.model")


def _built(source):
    return f"<{source}>", len(source.split()) + 2


def test_a_source_that_fits_stays_as_it_is(tokenizer):
    assert fit(_built, "the patient has a fever", 7, tokenizer) == ("<the patient has a fever>", 7, False)


def test_a_longer_one_loses_its_end_until_the_rest_fits(tokenizer):
    assert fit(_built, "the patient has a fever", 5, tokenizer) == ("<the patient has>", 5, True)


def test_where_nothing_may_be_cut_or_nothing_helps_there_is_no_result(tokenizer):
    assert fit(_built, "the patient has a fever", 5, tokenizer, cut=False) == (None, 7, False)
    assert fit(_built, "the patient has a fever", 2, tokenizer)[0] is None


def test_words_that_grow_when_they_are_cut_are_cut_further(tokenizer):
    def built(source):  # as where the new end falls into more tokens
        words = len(source.split())
        return source, words + 2 * (words < 5)

    assert fit(built, "the patient has a fever", 4, tokenizer) == ("the", 3, True)


def test_one_token_is_left_at_least(tokenizer):
    assert without_end("the patient has", 7, tokenizer) == "the"
    assert without_end("the", 1, tokenizer) is None


def test_of_a_conversation_the_longest_message_that_is_not_the_assistants_is_shortened():
    messages = [
        {"role": "user", "content": "a fever"},
        {"role": "assistant", "content": "a fever and a cough and a fever"},
        {"role": "user", "content": "a fever and a cough"},
    ]
    assert longest_source(messages) == 2 and longest_source(messages[1:2]) is None
    assert [message["content"] for message in with_content(messages, 2, "a")][-1] == "a"
    assert messages[2]["content"] == "a fever and a cough"
