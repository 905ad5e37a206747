"""Chat templates that do not end, or that build gigabytes, are refused quickly; others render as before."""

import time

import jinja2
import pytest
import support

from clinmerge_jax.checkpoint.tokenizers.tokenizer import load_tokenizer
from clinmerge_jax.errors import BadInput

MESSAGES = [{"role": "user", "content": "the patient"}, {"role": "assistant", "content": "has a fever ."}]


def loaded(folder, template):
    folder.mkdir()
    support.write_tokenizer(folder, chat_template=template)
    return load_tokenizer(folder, "config.model")


@pytest.mark.parametrize(
    "template, says",
    [
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "recurses without end"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "takes more than 4 seconds"),
        ("{% for a in range(99999) %}{{ messages }}{% endfor %}", "writes more than 100000 characters"),
        ("{% set x = 'ab' * 3000000000 %}{{ x }}", "of memory"),
        ("{% set x = 2 ** (2 ** 40) %}{{ x }}", "takes more|of memory"),
    ],
)
def test_templates_over_the_limits_are_refused_in_one_line(template, says, tmp_path):
    start = time.monotonic()
    with pytest.raises(BadInput, match=says) as refusal:
        loaded(tmp_path / "model", template)
    assert str(refusal.value).startswith("config.model: the chat template of ") and "\n" not in str(refusal.value)
    assert time.monotonic() - start < 60, "the limits are 8 seconds, and this machine may be busy"


# In a small process of its own, as Linux counts what a parent held as its child's ru_maxrss.
PEAK = """
import resource, sys
import process_memory
from clinmerge_jax.checkpoint.tokenizers.chat_template import _probed
assert _probed(sys.argv[1], ())
print(max(process_memory.kib("VmHWM"), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
"""


@pytest.mark.slow
@pytest.mark.parametrize("template", ["{% set x = 'ab' * 3000000000 %}{{ x }}", "{% set x = 2 ** (2 ** 40) %}{{ x }}"])
def test_a_template_that_builds_gigabytes_is_refused_before_it_has(template):
    assert int(support.run_script(PEAK, template)) < 1 << 20  # KiB


def test_a_template_that_keeps_to_the_limits_renders_as_before(tmp_path):
    template = "{% for m in messages %}{{ m.role }} {% generation %}{{ m.content }}{% endgeneration %} {% endfor %}"
    tokenizer = loaded(tmp_path / "model", template)
    rendered = tokenizer.apply_chat_template(MESSAGES, tokenize=False)
    assert rendered == "user the patient assistant has a fever . "


@pytest.mark.parametrize("template", ["{{ 1 / 0 }}", "{{ messages[0].content + 1 }}", "{{ raise_exception('no') }}"])
def test_whatever_goes_wrong_in_a_template_is_a_template_error(template, tmp_path):
    tokenizer = loaded(tmp_path / "model", template)
    with pytest.raises(jinja2.TemplateError):
        tokenizer.apply_chat_template(MESSAGES, tokenize=False)


def test_a_template_that_loops_for_some_conversations_alone_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("clinmerge_jax.checkpoint.tokenizers.chat_template._SECONDS", 1)
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    monkeypatch.setattr("clinmerge_jax.checkpoint.tokenizers.chat_template._probed", lambda *_: "")
    tokenizer = loaded(tmp_path / "model", "{% if messages[0].content == 'cough' %}" + loops + "{% endif %}fine")
    assert tokenizer.apply_chat_template(MESSAGES, tokenize=False) == "fine"
    with pytest.raises(jinja2.TemplateError, match="TimeoutError"):
        tokenizer.apply_chat_template([{"role": "user", "content": "cough"}], tokenize=False)
