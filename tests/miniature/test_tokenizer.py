"""The miniature's tokenizer: lossless, deterministic, one BOS, and the same after saving."""

import pytest
import transformers

from clinmerge_jax.miniature import tokenizer as mini
from clinmerge_jax.miniature import world

ODD_TEXTS = [
    "",
    " ",
    "  two  spaces , here .",
    "line\n\n\nline\t\r\n",
    "it 's n't 'll",
    "naïve café – 20 µg ≥ 3",
    "日本語のテキスト",
    "🙂👩‍⚕️",
    "e\u0301 \u00a0\u200b",
    "\x00\x7f",
    "<|eot|> inside <|user|>text",
]


@pytest.fixture(scope="module")
def texts():
    talks = [m["content"] for talk in world.conversations(0, 400) for m in talk]
    return world.base_documents(0, 600) + world.clinical_documents(0, 600) + talks


@pytest.fixture(scope="module")
def tok(texts):
    return mini.train_tokenizer(texts)


def test_round_trip(tok, texts):
    for text in ODD_TEXTS + texts[::40]:
        ids = tok.encode(text, add_special_tokens=False)
        assert tok.decode(ids) == text
        assert tok.decode(tok.encode(text)) == mini.BOS + text


def test_training_is_deterministic(tok, texts):
    again = mini.train_tokenizer(iter(texts))
    assert again.backend_tokenizer.to_str() == tok.backend_tokenizer.to_str()


def test_vocabulary(tok):
    assert len(tok) == tok.vocab_size == 1024
    assert tok.convert_tokens_to_ids(list(mini.SPECIAL_TOKENS)) == list(range(7))
    assert (tok.bos_token, tok.eos_token, tok.pad_token) == (mini.BOS, mini.EOS, mini.PAD)
    for token in mini.SPECIAL_TOKENS:
        assert tok.encode(token, add_special_tokens=False) == [tok.convert_tokens_to_ids(token)]


def test_encode_puts_one_bos_first(tok):
    ids = tok.encode("A red kite.")
    assert ids[0] == tok.bos_token_id and ids.count(tok.bos_token_id) == 1
    assert tok.eos_token_id not in ids
    assert tok.encode("A red kite.", add_special_tokens=False) == ids[1:]


def test_padding_is_on_the_right_and_masked(tok):
    batch = tok(["A kite.", "A red kite and a blue drum."], padding=True)
    short, mask = batch["input_ids"][0], batch["attention_mask"][0]
    assert sum(mask) < len(mask)
    assert [i == tok.pad_token_id for i in short] == [m == 0 for m in mask]
    assert mask == sorted(mask, reverse=True)


def test_chat_template_text(tok):
    talk = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "  Hello \n"},
        {"role": "assistant", "content": "Hi"},
    ]
    expected = "<|begin_of_text|><|system|>\nBe kind.<|eot|><|user|>\nHello<|eot|><|assistant|>\nHi<|eot|>"
    assert tok.apply_chat_template(talk, tokenize=False) == expected
    prompt = tok.apply_chat_template(talk[:2], tokenize=False, add_generation_prompt=True)
    assert prompt == expected.removesuffix("Hi<|eot|>")


def test_chat_template_has_one_bos_and_the_prompt_is_a_prefix_of_the_whole(tok):
    for talk in world.conversations(1, 30):
        ids = tok.apply_chat_template(talk, return_dict=False)
        assert ids.count(tok.bos_token_id) == 1 and ids[0] == tok.bos_token_id
        assert ids.count(tok.convert_tokens_to_ids(mini.EOT)) == len(talk)
        prompt = tok.apply_chat_template(talk[:-1], add_generation_prompt=True, return_dict=False)
        assert ids[: len(prompt)] == prompt


def test_chat_template_refuses_an_unknown_role(tok):
    with pytest.raises(Exception, match="unknown role tool"):
        tok.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_save_and_load(tok, texts, tmp_path):
    tok.save_pretrained(tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ODD_TEXTS + texts[::40]:
        assert loaded.encode(text) == tok.encode(text)
        assert loaded.decode(loaded.encode(text, add_special_tokens=False)) == text
    talk = world.conversations(1, 1)[0]
    rendered = tok.apply_chat_template(talk, return_dict=False)
    assert loaded.apply_chat_template(talk, return_dict=False) == rendered
    assert (loaded.pad_token_id, loaded.eos_token_id) == (tok.pad_token_id, tok.eos_token_id)
    assert loaded.model_max_length == 512


def test_documents_fit_the_context(tok):
    for documents in (world.base_documents(5, 500), world.clinical_documents(5, 500)):
        lengths = [len(ids) for ids in tok(documents)["input_ids"]]
        assert sum(length < 500 for length in lengths) >= 0.99 * len(lengths)
    talks = [tok.apply_chat_template(t, return_dict=False) for t in world.conversations(5, 500)]
    assert sum(len(ids) < 500 for ids in talks) >= 0.99 * len(talks)


def test_vocabulary_size_is_checked(texts):
    with pytest.raises(ValueError, match="need 263"):
        mini.train_tokenizer(texts, vocab_size=262)
    with pytest.raises(ValueError, match="train on more text"):
        mini.train_tokenizer(["a few words"])
