"""Prompts: files, the chat template once, one BOS, refusals that quote nothing."""

import json

import numpy as np
import pytest
import support
import transformers

from clinmerge_jax.data.prompts import Prompt, encode_prompt, read_prompts
from clinmerge_jax.errors import BadInput

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %} {{ m.role }} {{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %} assistant{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    support.write_tokenizer(folder, chat_template=TEMPLATE)
    return transformers.AutoTokenizer.from_pretrained(folder)


def _ids(*words):
    return [support.WORDS.index(word) for word in words]


def _write(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(path)


def test_json_lines_and_text_are_read(tmp_path):
    messages = [{"role": "user", "content": "fever"}]
    path = _write(tmp_path / "a.jsonl", {"prompt": "the patient"}, "", {"id": "x7", "messages": messages})
    assert read_prompts(path, "f") == [
        Prompt(f"{path}:1", 0, text="the patient"), Prompt(f"{path}:3", "x7", messages=messages),
    ]  # fmt: skip
    path = _write(tmp_path / "a.txt", "the patient", "", '{"prompt": "raw"}')
    assert [prompt.text for prompt in read_prompts(path, "f")] == ["the patient", '{"prompt": "raw"}']


def test_tables_are_read_by_their_column_and_sharegpt_up_to_the_answer(tmp_path):
    path = _write(tmp_path / "a.csv", "id,prompt,ward", "q1,the patient,A", 'q2,"has, a\nfever",B', ",cough,C")
    assert read_prompts(path, "f") == [
        Prompt(f"{path} row 1", "q1", text="the patient"),
        Prompt(f"{path} row 2", "q2", text="has, a\nfever"),
        Prompt(f"{path} row 3", 2, text="cough"),
    ]
    turns = [{"from": "human", "value": "fever"}, {"from": "gpt", "value": "cough"}]
    path = _write(tmp_path / "b.json", [{"conversations": turns[:1]}])
    assert read_prompts(path, "f") == [Prompt(f"{path} row 1", 0, messages=[{"role": "user", "content": "fever"}])]
    path = _write(tmp_path / "b.json", [{"conversations": turns}])
    with pytest.raises(BadInput, match="row 1: its conversation ends with an answer; leave out"):
        read_prompts(path, "f")


def test_the_template_is_applied_once_and_there_is_one_bos(tokenizer):
    expected = _ids("<s>", "user", "fever", "assistant")
    chat = Prompt("f:1", 0, messages=[{"role": "user", "content": "fever"}])
    np.testing.assert_array_equal(encode_prompt(chat, tokenizer)[0], expected)
    raw = Prompt("f:1", 0, text="fever")
    np.testing.assert_array_equal(encode_prompt(raw, tokenizer, chat=True)[0], expected)
    np.testing.assert_array_equal(encode_prompt(raw, tokenizer)[0], _ids("fever"))
    rendered = Prompt("f:1", 0, text="<s> <s> user fever assistant")
    np.testing.assert_array_equal(encode_prompt(rendered, tokenizer)[0], expected)
    assert encode_prompt(raw, tokenizer)[0].dtype == np.int32


def test_a_tokenizer_that_adds_a_bos_adds_no_second(tmp_path):
    support.write_tokenizer(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    adds = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("the patient", "<s> the patient"):
        np.testing.assert_array_equal(encode_prompt(Prompt("f", 0, text=text), adds)[0], _ids("<s>", "the", "patient"))


def test_what_is_too_long_is_shortened_only_where_that_is_asked(tokenizer):
    raw = Prompt("f:3", 0, text="the patient has a fever")
    chat = Prompt("f:4", 1, messages=[{"role": "user", "content": raw.text}])
    whole = encode_prompt(raw, tokenizer)[0]
    assert encode_prompt(raw, tokenizer, most=3)[0].tolist() == whole.tolist()
    assert encode_prompt(raw, tokenizer, most=9, cut=True)[1] is False
    tokens, shortened = encode_prompt(raw, tokenizer, most=3, cut=True)
    assert shortened and tokens.tolist() == whole[:3].tolist()
    full = encode_prompt(chat, tokenizer)[0]
    tokens, shortened = encode_prompt(chat, tokenizer, most=len(full) - 2, cut=True)
    assert shortened and len(tokens) == len(full) - 2 and tokens[-1] == full[-1]
    with pytest.raises(BadInput, match="f:4: has .* and 2 fit beside the answer"):
        encode_prompt(chat, tokenizer, most=2, cut=True)


def test_chat_without_a_template_is_refused(tmp_path):
    support.write_tokenizer(tmp_path)
    bare = transformers.AutoTokenizer.from_pretrained(tmp_path)
    conversation = Prompt("f:3", 0, messages=[{"role": "user", "content": "a"}])
    for prompt, chat in ((Prompt("f:3", 0, text="fever"), True), (conversation, None)):
        with pytest.raises(BadInput, match="f:3: is a conversation, but the tokenizer has no chat template"):
            encode_prompt(prompt, bare, chat)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"text": "secret"}, "has none of 'prompt', 'messages' and 'conversations'; its columns are 'text'; give one"),
        ({"prompt": "secret", "messages": []}, "has more than one of 'prompt', 'messages'"),
        ({"prompt": ["secret"]}, "'prompt' is not text"),
        ({"prompt": ""}, "'prompt' is not text"),
        ({"messages": []}, "'messages' is not a list of messages"),
        ({"messages": [{"role": "user", "content": ["secret"]}]}, "a message lacks the text"),
        ({"prompt": "secret", "id": 1.5}, "'id' is neither text nor a whole number"),
        ({"prompt": "secret \ud800"}, "half of a surrogate pair"),
        ("{secret", "is not valid JSON"),
        ('["secret"]', "is not a JSON object"),
    ],
)
def test_bad_rows_are_refused_by_line_and_not_quoted(tmp_path, row, problem):
    path = _write(tmp_path / "a.jsonl", {"prompt": "fine"}, row)
    with pytest.raises(BadInput, match=problem) as refusal:
        read_prompts(path, "config.prompts")
    assert str(refusal.value).startswith(f"{path}:2") and "secret" not in str(refusal.value)


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(BadInput, match="config.prompts: .* is not a file"):
        read_prompts(str(tmp_path / "no.jsonl"), "config.prompts")
    (tmp_path / "latin.txt").write_bytes(b"na\xefve")
    with pytest.raises(BadInput, match="is not UTF-8 at byte 2"):
        read_prompts(str(tmp_path / "latin.txt"), "config.prompts")
    with pytest.raises(BadInput, match="is empty"):
        read_prompts(_write(tmp_path / "empty.txt", "", " "), "config.prompts")
