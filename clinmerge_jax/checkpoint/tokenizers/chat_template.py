"""Limits on chat templates, which are programs that come with a checkpoint.

Jinja's sandbox denies a template access to files and to the interpreter, but does not limit recursion, loops or memory.
So each template is first rendered in a process with limits on time and memory (`template_probe.py`). Later renderings
run under a time limit.
"""

import contextlib
import functools
import json
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jinja2

from clinmerge_jax.errors import BadInput

_PROBE = pathlib.Path(__file__).with_name("template_probe.py")
_CHARACTERS = 100_000  # rendered for a short conversation; templates with long instructions write some thousands
_BYTES = 768 << 20  # of the probe's address space
_CPU_SECONDS = 4
_SECONDS = 8  # of one rendering, and of the whole probe
_TOO_LONG = f"takes more than {_CPU_SECONDS} seconds for a short conversation"


def limit_chat_template(tokenizer, field: str, folder: pathlib.Path) -> None:
    """Refuses a tokenizer whose chat template exceeds the limits, and sets a time limit for later renderings.

    Afterwards `tokenizer.apply_chat_template` raises `jinja2.TemplateError` for any failure of a template.

    Args:
      tokenizer: a tokenizer of transformers; one without a chat template is left as it is.
      field: the config field that gave it, for messages.
      folder: its folder.

    Raises:
      BadInput: the template recurses or loops without end, writes too much text or takes too much memory.
    """
    template = tokenizer.chat_template
    if not template:
        return
    named = template if isinstance(template, dict) else {"default": template}
    tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    for text in named.values():
        problem = _probed(str(text), tuple(sorted(tokens.items())))
        if problem:
            raise BadInput(f"{field}: the chat template of {folder} {problem}; correct the template")
    tokenizer.apply_chat_template = functools.partial(_rendered, tokenizer.apply_chat_template)


@functools.lru_cache(maxsize=64)
def _probed(template: str, tokens: tuple[tuple[str, str], ...]) -> str:
    """Renders a template in the probe; returns what is wrong with it, or ""."""
    given = {
        "template": template,
        "tokens": dict(tokens),
        "characters": _CHARACTERS,
        "bytes": _BYTES,
        "seconds": _CPU_SECONDS,
    }
    try:
        # -P: modules are not searched for in the folder of this file.
        done = subprocess.run(
            [sys.executable, "-P", str(_PROBE)],
            input=json.dumps(given),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return _TOO_LONG
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return _TOO_LONG
    if done.returncode < 0:
        return "crashes the program that renders it"
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
        return f"cannot be rendered ({reason[0][:200]})"
    return done.stdout


def _rendered(render: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        with _time_limit(_SECONDS):
            return render(*args, **kwargs)
    except jinja2.TemplateError:
        raise
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TimeoutError, TypeError,
            ValueError) as error:  # fmt: skip  # what expressions in a template can raise
        raise jinja2.TemplateError(f"{type(error).__name__} in the template") from error


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError after so many seconds; only in the main thread, where Python delivers signals."""
    if threading.current_thread() is not threading.main_thread() or signal.getitimer(signal.ITIMER_REAL)[0]:
        yield
        return

    def stop(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
