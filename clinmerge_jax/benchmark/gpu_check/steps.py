"""Shared by the training parts: the job, its repeats, and the figures of a step."""

import gc
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.training.flops import step_flops

_MESH = {"data": 0, "fsdp": 0, "tensor": 0}  # the one device of the check
_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory")
_FIELDS = ("model", "rows", "tokens", "steps", "rank", "dtype", "attention", "product")

Train = Callable[[Mapping[str, Any]], Mapping[str, Any]]  # as `benchmark.train_steps.train`


def repeats(train: Train, settings: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Yields the figures and the remat of each repeat; remat becomes "full" where "none" runs out of memory."""
    job = {**{field: settings[field] for field in _FIELDS}, "mesh": _MESH, "compiled": False}
    kept = settings["remat"]
    for _ in range(settings["repeats"]):
        try:
            found = train({**job, "remat": kept})
        except RuntimeError as error:  # the out-of-memory errors of JAX and torch
            if kept != "none" or not any(words in str(error) for words in _OUT_OF_MEMORY):
                raise
            found = None
        if found is None:  # outside the handler: the error keeps the failed run's arrays alive
            kept = "full"
            _free()
            found = train({**job, "remat": kept})
        yield found, kept
        _free()


def _free() -> None:
    """Frees the last model, whose objects refer to one another."""
    gc.collect()
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()


def name(settings: Mapping[str, Any]) -> str:
    """The name of the figure."""
    return f"training {settings['name']}, {settings['rows']} x {settings['tokens']} tokens"


def tokens(settings: Mapping[str, Any]) -> int:
    """Tokens of a step."""
    return settings["rows"] * settings["tokens"]


def mfu(settings: Mapping[str, Any], found: Mapping[str, Any]) -> float:
    """Operations per second that a step needs, without recomputation, over the speed of a product of two matrices."""
    llama = LlamaConfig.from_json(settings["model"], "model")
    attended = tokens(settings) * (settings["tokens"] + 1) // 2
    flops = step_flops(llama, tokens(settings), attended, frozen=settings["rank"] > 0)
    return flops / found["seconds"] / found["product_flops"]
