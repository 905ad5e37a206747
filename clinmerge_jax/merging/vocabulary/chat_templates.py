"""Chat templates that a recipe may name, and writing one into a checkpoint's tokenizer files."""

import collections
import json
import pathlib
from collections.abc import Iterable, Mapping

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from clinmerge_jax.checkpoint.folder import Checkpoint
from clinmerge_jax.checkpoint.tokenizers.tokenizer import SETTINGS_FILE, json_bytes, settings_of
from clinmerge_jax.errors import BadInput

TEMPLATE_FILE = "chat_template.jinja"

# The formats that these models were trained with, under mergekit's names.
TEMPLATES = {
    "alpaca": (
        "{% for message in messages %}"
        "{% if message.role == 'system' %}{{ message.content + '\n\n' }}"
        "{% elif message.role == 'user' %}{{ '### Instruction:\n' + message.content + '\n\n' }}"
        "{% else %}{{ '### Response:\n' + message.content + '\n\n' }}{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
    ),
    "chatml": (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "exaone": (
        "{% for message in messages %}"
        "{% if loop.first and message.role != 'system' %}{{ '[|system|][|endofturn|]\n' }}{% endif %}"
        "{{ '[|' + message.role + '|]' + message.content }}"
        "{% if message.role != 'user' %}{{ '[|endofturn|]' }}{% endif %}{{ '\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}"
    ),
    "llama3": (
        "{{ bos_token }}"
        "{% for message in messages %}"
        "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}{% set before = namespace(text='') %}"
        "{% for message in messages %}"
        "{% if message.role == 'system' %}{% set before.text = message.content + '\n\n' %}"
        "{% elif message.role == 'user' %}{{ '[INST] ' + before.text + message.content + ' [/INST]' }}"
        "{% set before.text = '' %}"
        "{% else %}{{ ' ' + message.content + eos_token }}{% endif %}"
        "{% endfor %}"
    ),
}


def chosen_template(choice: str, models: Iterable[Checkpoint], place: str) -> str:
    """The Jinja text that a recipe's `chat_template` stands for; "" for none.

    Args:
      choice: "auto" for the one that most models have (on a tie the first), a name in `TEMPLATES`, Jinja text, or "".
      models: in the recipe's order.
      place: the setting that the choice comes from, for messages.

    Raises:
      BadInput: it is none of these, or not valid Jinja.
    """
    if not choice:
        return ""
    if choice == "auto":
        found = [template for template in map(template_of, models) if template]
        return collections.Counter(found).most_common(1)[0][0] if found else ""
    if choice in TEMPLATES:
        return TEMPLATES[choice]
    if "{" not in choice:
        raise BadInput(
            f"{place}: {choice!r} is not a template; give auto, Jinja text, or one of {', '.join(TEMPLATES)}"
        )
    try:
        ImmutableSandboxedEnvironment(extensions=[loopcontrols]).from_string(choice)
    except jinja2.TemplateError as error:
        raise BadInput(f"{place}: is not valid Jinja ({error}); correct the template") from error
    return choice


def template_of(checkpoint: Checkpoint) -> str:
    """The default chat template of a checkpoint's tokenizer; "" for none."""
    file = checkpoint.path / TEMPLATE_FILE
    if file.is_file():
        return file.read_text(encoding="utf-8").strip()
    template = settings_of(checkpoint.path).get("chat_template")
    if isinstance(template, list):  # several templates by name
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default")
    return template.strip() if isinstance(template, str) else ""


def with_chat_template(files: Mapping[str, bytes | pathlib.Path], template: str) -> dict[str, bytes | pathlib.Path]:
    """Tokenizer files with another chat template.

    Args:
      files: content or path, by file name.
      template: Jinja text.
    """
    kept = {name: content for name, content in files.items() if not name.startswith("chat_template")}
    if SETTINGS_FILE in kept:
        content = kept[SETTINGS_FILE]
        settings = json.loads(content if isinstance(content, bytes) else content.read_bytes())
        if "chat_template" in settings:
            settings.pop("chat_template")
            kept[SETTINGS_FILE] = json_bytes(settings)
    return {**kept, TEMPLATE_FILE: template.encode()}
