"""Documents to tokens, and which of them count."""

import copy

import numpy as np
import pytest
from support import write_tokenizer

from clinmerge_jax.checkpoint.tokenizers.tokenizer import load_tokenizer
from clinmerge_jax.data.documents import Document, check_vocabulary, encode
from clinmerge_jax.data.miniature import corpus
from clinmerge_jax.errors import BadInput
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


def test_raw_text_ends_with_the_end_token_once_and_conversations_do_not(tokenizer):
    end = tokenizer.eos_token_id
    text = encode(Document("d", text="The dog sat."), tokenizer, end)
    assert text.tokens[-1] == end != text.tokens[-2] and text.targets[-1]
    again = encode(Document("d", text="The dog sat.<|end_of_text|>"), tokenizer, end)
    assert again.tokens.tolist() == text.tokens.tolist()
    assert encode(Document("d", messages=CONVERSATION), tokenizer, end).tokens[-1] != end


def test_token_ids_beyond_the_embedding_are_refused():
    tokens = [np.array([1, 99], np.int32), np.array([], np.int32)]
    check_vocabulary(tokens, 100, "config.model")
    with pytest.raises(BadInput, match="config.model: the tokenizer gives token id 99"):
        check_vocabulary(tokens, 99, "config.model")


LLAMA31_FORM = (
    "{{ bos_token }}<|start|>system<|end|>\n\nWritten in autumn.\n\n"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] | trim }}{% endif %}<|eot|>"
    "{% for m in messages if m['role'] != 'system' %}"
    "<|start|>{{ m['role'] }}<|end|>\n\n{{ m['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)
FOLDING = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}<|start|>"
    "{% if loop.index0 == 1 and messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}\n\n{% endif %}"
    "{{ m['content'] }}<|end|>"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }}<|end_of_text|>{% endif %}{% endfor %}"
)
REFUSING = FOLDING.replace("{% elif", "{% elif m['role'] == 'system' %}{{ raise_exception('secret') }}{% elif")
SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.fixture(scope="module")
def with_headers(tokenizer):
    own = copy.deepcopy(tokenizer)
    own.add_special_tokens({"additional_special_tokens": ["<|start|>", "<|end|>", "<|eot|>"]})
    return own


def _assert_encoded(encoded, tokenizer, parts):
    """The tokens are those of the parts, and exactly the parts that are marked True are learned."""
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text, _ in parts]
    assert encoded.tokens.tolist() == [token for part in ids for token in part]
    assert encoded.targets.tolist() == [learned for part, (_, learned) in zip(ids, parts) for _ in part]


@pytest.mark.parametrize("system", ["", "Be brief."])
def test_llama_31s_form_learns_every_answer_with_its_end_of_turn(with_headers, system):
    with_headers.chat_template = LLAMA31_FORM
    encoded = encode(Document("d", messages=[SYSTEM] * bool(system) + CONVERSATION), with_headers, end=1)
    parts = [
        (f"<|begin_of_text|><|start|>system<|end|>\n\nWritten in autumn.\n\n{system}<|eot|>", False),
        ("<|start|>user<|end|>\n\nWhere is the dog?<|eot|><|start|>assistant<|end|>\n\n", False),
        ("In the barn.<|eot|>", True),
        ("<|start|>user<|end|>\n\nAnd the hen?<|eot|><|start|>assistant<|end|>\n\n", False),
        ("At home.<|eot|>", True),
    ]
    _assert_encoded(encoded, with_headers, parts)


def test_a_template_that_folds_the_system_message_into_the_users_learns_the_answers_alone(with_headers):
    with_headers.chat_template = FOLDING
    parts = [
        ("<|begin_of_text|><|start|>Be brief.\n\nWhere is the dog?<|end|>", False),
        (" In the barn.<|end_of_text|>", True),
        ("<|start|>And the hen?<|end|>", False),
        (" At home.<|end_of_text|>", True),
    ]
    _assert_encoded(encode(Document("d", messages=[SYSTEM, *CONVERSATION]), with_headers), with_headers, parts)


def test_a_template_without_a_system_role_names_the_row_and_the_mend(with_headers):
    with_headers.chat_template = REFUSING
    assert encode(Document("d", messages=CONVERSATION), with_headers).targets.any()
    with pytest.raises(BadInput, match="note 7: the chat template refuses it; put its system message into") as error:
        encode(Document("note 7", messages=[SYSTEM, *CONVERSATION]), with_headers)
    assert "secret" not in str(error.value) and "brief" not in str(error.value)


def test_of_a_prompt_with_its_completion_the_completion_and_the_end_are_learned(tokenizer):
    pair, end = Document("d", prompt="Where is the dog?\n", completion="In the barn."), tokenizer.eos_token_id
    parts = [("<|begin_of_text|>Where is the dog?\n", False), ("In the barn.<|end_of_text|>", True)]
    _assert_encoded(encode(pair, tokenizer, end), tokenizer, parts)
    started = Document("d", prompt="<|begin_of_text|>Where is the dog?\n", completion="In the barn.<|end_of_text|>")
    _assert_encoded(encode(started, tokenizer, end), tokenizer, parts)


def test_a_token_across_the_boundary_is_learned(tokenizer):
    text = "The teapot stood in the garden."
    whole = tokenizer(text)["input_ids"]
    pieces = [tokenizer.decode(token) for token in whole[1:]]
    across = next(index for index, piece in enumerate(pieces) if index and len(piece) > 2)
    before = "".join(pieces[:across])
    cut = len(before) + 2  # inside a token
    encoded = encode(Document("d", prompt=text[:cut], completion=text[cut:]), tokenizer)
    assert encoded.tokens.tolist() == whole
    first = int(np.argmax(encoded.targets))
    assert encoded.targets[first:].all() and not encoded.targets[:first].any()
    assert tokenizer.decode(encoded.tokens[1:first]) == before


def test_as_chat_a_prompt_and_its_completion_are_two_messages(tokenizer):
    pair = Document("d", prompt=CONVERSATION[0]["content"], completion=CONVERSATION[1]["content"])
    encoded, expected = (
        encode(pair, tokenizer, 1, chat=True),
        encode(Document("d", messages=CONVERSATION[:2]), tokenizer),
    )
    np.testing.assert_array_equal(encoded.tokens, expected.tokens)
    np.testing.assert_array_equal(encoded.targets, expected.targets)


def test_a_mask_of_everything_is_refused_by_name(with_headers):
    with_headers.chat_template = (
        "{{ bos_token }}{% for m in messages if m['role'] == 'assistant' %}{{ m['content'] }}{% endfor %}"
    )
    with pytest.raises(BadInput, match="note 7: only the answer is left of it"):
        encode(Document("note 7", messages=CONVERSATION), with_headers)


def test_an_id_is_the_rows_own_or_follows_from_its_words_alone():
    assert Document("a:1", text="x", given_id="n7").id == "n7"
    assert Document("a:1", text="x").id == Document("b:9", text="x", label="c").id
    others = [Document("d", text="y"), Document("d", prompt="x", completion="y"), Document("d", messages=CONVERSATION)]
    assert len({document.id for document in [*others, Document("d", text="x")]}) == 4
    assert Document("d", text="A note.").id == "5d83f71ebc0cbf0b"


def test_a_conversation_that_begins_with_an_answer_is_refused(tokenizer):
    messages = [{"role": "assistant", "content": "Hello."}, *CONVERSATION]
    with pytest.raises(BadInput, match="note 9: begins with an assistant message"):
        encode(Document("note 9", messages=messages), tokenizer)
