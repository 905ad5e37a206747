"""Documents to tokens, and which of them count."""

import json

import numpy as np
import pytest
from support import write_tokenizer

from clinmerge_jax.checkpoint.tokenizer import load_tokenizer
from clinmerge_jax.data.documents import (
    Document,
    Encoded,
    check_vocabulary,
    encode,
    pack,
)
from clinmerge_jax.data.reading import read_documents
from clinmerge_jax.errors import BadInput
from clinmerge_jax.miniature.corpus import corpus
from clinmerge_jax.miniature.tokenizer import train_tokenizer

# Written in the form of Llama-3's template: headers, trimmed content, an end of turn, no generation marker.
LLAMA3_LIKE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]\n\n{{ m['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n\n{% endif %}"
)
NO_SYSTEM_ROLE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token }}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }} <|end_of_text|>{% endif %}{% endfor %}"
)
REWRITING = "{{ messages[-1]['content'] }} after {{ messages | length }}"

CONVERSATION = [
    {"role": "user", "content": "Where is the dog?"},
    {"role": "assistant", "content": "In the barn."},
    {"role": "user", "content": "And the hen?"},
    {"role": "assistant", "content": "At home."},
]


@pytest.fixture(scope="module")
def tokenizer():
    texts = [document.text for document in corpus("base", 0, 300)]
    return train_tokenizer(texts, vocab_size=400)


def test_every_token_of_raw_text_but_the_first_counts(tokenizer):
    encoded = encode(Document("d", text="The dog sat."), tokenizer)
    assert encoded.tokens[0] == tokenizer.bos_token_id
    assert tokenizer.decode(encoded.tokens[1:]) == "The dog sat."
    assert not encoded.targets[0] and encoded.targets[1:].all()


@pytest.mark.parametrize("template", [None, LLAMA3_LIKE, NO_SYSTEM_ROLE], ids=["own", "llama 3", "no system role"])
def test_exactly_the_answers_of_a_conversation_count(tokenizer, template):
    own, tokenizer.chat_template = tokenizer.chat_template, template or tokenizer.chat_template
    try:
        encoded = encode(Document("d", messages=CONVERSATION), tokenizer)
    finally:
        tokenizer.chat_template = own
    counted = [tokenizer.decode(encoded.tokens[run]) for run in _runs(encoded.targets)]
    end = "<|end_of_text|>" if template == NO_SYSTEM_ROLE else "<|eot|>"
    assert [text.replace(end, "").strip() for text in counted] == ["In the barn.", "At home."]
    assert all(text.endswith(end) for text in counted)
    if template != NO_SYSTEM_ROLE:
        assert list(encoded.tokens).count(tokenizer.bos_token_id) == 1


def _runs(mask):
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    return [slice(start, stop) for start, stop in zip(edges[::2], edges[1::2])]


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer):
    own, tokenizer.chat_template = tokenizer.chat_template, REWRITING
    try:
        with pytest.raises(BadInput, match="note 7: the chat template rewrites earlier turns"):
            encode(Document("note 7", messages=CONVERSATION), tokenizer)
    finally:
        tokenizer.chat_template = own


def test_a_conversation_without_answer_is_refused_without_quoting_it(tokenizer):
    with pytest.raises(BadInput, match="note 7: has no assistant message") as error:
        encode(Document("note 7", messages=CONVERSATION[:1]), tokenizer)
    assert "dog" not in str(error.value)


def test_a_conversation_needs_a_chat_template(tmp_path):
    write_tokenizer(tmp_path)
    with pytest.raises(BadInput, match="no chat template"):
        encode(Document("note 7", messages=CONVERSATION), load_tokenizer(tmp_path, "config.model"))


def test_json_lines_of_text_and_messages_are_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "A note."}) + "\n\n" + json.dumps({"messages": CONVERSATION}) + "\n")
    first, second = read_documents(str(path), "config.text")
    assert (first.text, first.name) == ("A note.", f"{path}:1")
    assert (second.messages, second.name) == (CONVERSATION, f"{path}:3")


@pytest.mark.parametrize(
    "line", ["{", "[1]", "{}", '{"text": ""}', '{"text": 3}', '{"messages": []}', '{"messages": [{"role": "user"}]}']
)
def test_malformed_lines_are_refused_by_number_without_quoting_text(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "Secret patient words."}\n' + line + "\n")
    with pytest.raises(BadInput, match=":2: ") as error:
        read_documents(str(path), "config.text")
    assert "Secret" not in str(error.value)


def test_packing_lays_documents_end_to_end():
    documents = [Encoded(np.arange(1, n + 1, dtype=np.int32), np.arange(n) > 0) for n in (4, 6, 5)]
    tokens, targets = pack(documents, 4)
    stream = [1, 2, 3, 4, 1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5]
    assert tokens.shape == (3, 5)
    assert [row.tolist() for row in tokens] == [stream[:5], stream[4:9], stream[8:13]]
    assert targets[0].tolist() == [False, True, True, True, False]


def test_raw_text_ends_with_the_end_token_once_and_conversations_do_not(tokenizer):
    end = tokenizer.eos_token_id
    text = encode(Document("d", text="The dog sat."), tokenizer, end)
    assert text.tokens[-1] == end != text.tokens[-2] and text.targets[-1]
    again = encode(Document("d", text="The dog sat.<|end_of_text|>"), tokenizer, end)
    assert again.tokens.tolist() == text.tokens.tolist()
    assert encode(Document("d", messages=CONVERSATION), tokenizer, end).tokens[-1] != end


def test_packing_pads_a_text_shorter_than_a_window_without_scoring_the_padding():
    tokens, targets = pack([Encoded(np.array([5, 6], np.int32), np.array([False, True]))], 4)
    assert tokens.tolist() == [[5, 6, 0, 0, 0]] and targets.tolist() == [[False, True, False, False, False]]


def test_line_separators_inside_json_text_do_not_split_it(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one \u2028 two \u0085 three"}\n{"text": "next"}\r\n', encoding="utf-8")
    assert [document.text for document in read_documents(str(path), "config.text")] == [
        "one \u2028 two \u0085 three",
        "next",
    ]


def test_token_ids_beyond_the_embedding_are_refused():
    documents = [Encoded(np.array([1, 99], np.int32), np.array([False, True]))]
    check_vocabulary(documents, 100, "config.model")
    with pytest.raises(BadInput, match="config.model: the tokenizer gives token id 99"):
        check_vocabulary(documents, 99, "config.model")
