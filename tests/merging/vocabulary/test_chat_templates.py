"""Chat templates by name, by majority and by text."""

import json

import jinja2
import pytest
import support

from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.errors import BadInput
from clinmerge_jax.merging.vocabulary.chat_templates import TEMPLATES, chosen_template, template_of, with_chat_template

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Fever?"},
    {"role": "assistant", "content": "None."},
    {"role": "user", "content": "Cough?"},
]
EXPECTED = {
    "alpaca": (
        "Be brief.\n\n### Instruction:\nFever?\n\n### Response:\nNone.\n\n### Instruction:\nCough?\n\n### Response:\n"
    ),
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nFever?<|im_end|>\n<|im_start|>assistant\nNone."
        "<|im_end|>\n<|im_start|>user\nCough?<|im_end|>\n<|im_start|>assistant\n"
    ),
    "exaone": (
        "[|system|]Be brief.[|endofturn|]\n[|user|]Fever?\n[|assistant|]None.[|endofturn|]\n"
        "[|user|]Cough?\n[|assistant|]"
    ),
    "llama3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nFever?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nNone.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nCough?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "mistral": "<s>[INST] Be brief.\n\nFever? [/INST] None.</s>[INST] Cough? [/INST]",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_by_name_gives_the_format_of_that_name(name):
    template = jinja2.Environment().from_string(chosen_template(name, [], "x"))
    text = template.render(messages=CHAT, add_generation_prompt=True, bos_token="<s>", eos_token="</s>")
    assert text == EXPECTED[name]


@pytest.fixture
def models(tmp_path):
    """Four models: two with one template, one with another in a file of its own, one with none."""
    templates = ("{{ one }}", "{{ two }}", "{{ two }}", None)
    for index, template in enumerate(templates):
        folder = support.write_llama(tmp_path / str(index))
        support.write_tokenizer(folder, chat_template=template)
    settings = tmp_path / "1" / "tokenizer_config.json"
    content = json.loads(settings.read_text())
    (tmp_path / "1" / "chat_template.jinja").write_text(content.pop("chat_template"))
    settings.write_text(json.dumps(content))
    return [open_checkpoint(str(tmp_path / str(index)), "x") for index in range(4)]


def test_auto_takes_the_template_that_most_models_have(models):
    assert [template_of(model) for model in models] == ["{{ one }}", "{{ two }}", "{{ two }}", ""]
    assert chosen_template("auto", models, "x") == "{{ two }}"
    assert chosen_template("auto", models[:2], "x") == "{{ one }}"
    assert chosen_template("auto", models[3:], "x") == ""


def test_a_named_one_among_several_is_not_the_default(models):
    settings = models[0].path / "tokenizer_config.json"
    named = [{"name": "tool_use", "template": "{{ tool }}"}, {"name": "default", "template": "{{ plain }}"}]
    settings.write_text(json.dumps({"chat_template": named}))
    assert template_of(models[0]) == "{{ plain }}"


@pytest.mark.parametrize("choice", ["vicuna", "{% for %}", "{{ unclosed"])
def test_what_is_no_template_is_refused(choice):
    with pytest.raises(BadInput, match="^config.chat_template: "):
        chosen_template(choice, [], "config.chat_template")


def test_the_template_replaces_whatever_the_files_had(models):
    files = {path.name: path for path in models[1].carried_files()} | {
        "tokenizer_config.json": b'{"chat_template": "{{ old }}", "eos_token": "</s>"}'
    }
    changed = with_chat_template(files, "{{ new }}")
    assert changed["chat_template.jinja"] == b"{{ new }}"
    assert json.loads(changed["tokenizer_config.json"]) == {"eos_token": "</s>"}
    assert changed["tokenizer.json"] == files["tokenizer.json"]
