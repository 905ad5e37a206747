"""Renders a chat template in a process of its own, under limits; `chat_template.py` runs this file as a program.

Standard input: JSON with `template`, `tokens` (the special tokens by name) and the limits `characters`, `bytes` and
`seconds`. Standard output: which limit the template exceeds, in a few words, or nothing. A template that rejects these
conversations with an error of its own is within the limits.
"""

import json
import resource
import sys

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

_TURNS = [{"role": "user", "content": "the patient"}, {"role": "assistant", "content": "has a fever ."}]
_CONVERSATIONS = (_TURNS[:1], _TURNS, _TURNS * 3, [{"role": "system", "content": "be brief"}, *_TURNS, _TURNS[0]])


class _Generation(Extension):
    """The tag {% generation %} of transformers, which does not change the text."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _refuse(message: str):
    raise jinja2.TemplateError(message)


def _probe(given: dict) -> str:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = lambda value, **kwargs: json.dumps(value, ensure_ascii=False)
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: "2026-01-01"
    for messages in _CONVERSATIONS:
        for ask in (False, True):
            try:
                written = 0
                template = environment.from_string(given["template"])
                for piece in template.generate(messages=messages, add_generation_prompt=ask, **given["tokens"]):
                    written += len(piece)
                    if written > given["characters"]:
                        return f"writes more than {given['characters']} characters for a short conversation"
            except RecursionError:
                return "recurses without end"
            except MemoryError:
                return f"takes more than {given['bytes'] >> 20} MiB of memory for a short conversation"
            except Exception:  # its own refusals and other errors of a template: reported when it is used
                continue
    return ""


if __name__ == "__main__":
    limits = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_AS, (limits["bytes"],) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (limits["seconds"],) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stdout.write(_probe(limits))
