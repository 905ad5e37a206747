"""Steps of training with random weights, here and by transformers (and PEFT), each in a process of its own."""

import gc
import importlib.util
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from clinmerge_jax.benchmark.gpu_check.record import Reporter
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.training.flops import step_flops

_PEER = pathlib.Path(__file__).parents[3] / "third_party" / "peers" / "train_with_transformers.py"
_MESH = {"data": 0, "fsdp": 0, "tensor": 0}  # the one device
_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory")

Train = Callable[[Mapping[str, Any]], Mapping[str, Any]]


def ours(settings: Mapping[str, Any], report: Reporter) -> None:
    """Tokens a second and MFU of a step; see `parts.PARTS` for the settings."""
    from clinmerge_jax.benchmark.train_steps import train

    name, rates, shares = _name(settings), [], []
    for found, kept in _runs(train, settings):
        rates.append(_tokens(settings) / found["seconds"])
        shares.append(_mfu(settings, found))
        report.add(
            name, rates, "tokens/s", ratios=shares, ratio_of="MFU", remat=kept, peak_bytes=found["peak_bytes"],
            first_seconds=found["first_seconds"], product_flops=found["product_flops"],
        )  # fmt: skip


def peer(settings: Mapping[str, Any], report: Reporter) -> None:
    """The same by third_party/peers/train_with_transformers.py."""
    spec = importlib.util.spec_from_file_location(_PEER.stem, _PEER)
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    whose = "transformers and PEFT" if settings["rank"] else "transformers"
    name, rates, shares = _name(settings), [], []
    for found, kept in _runs(program.train, settings):
        rates.append(_tokens(settings) / found["seconds"])
        shares.append(_mfu(settings, found))
        theirs = f"{name}, {whose}" + ("" if kept == "none" else ", layers checkpointed")
        report.against_ours(
            theirs, rates, "tokens/s", name, remat=kept, peak_bytes=found["peak_bytes"],
            mfu=shares, product_flops=found["product_flops"],
        )  # fmt: skip


def _runs(train: Train, settings: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str]]:
    """What a program says of each repeat, and what its backward pass keeps: less, where all of it does not fit."""
    fields = ("model", "rows", "tokens", "steps", "rank", "dtype", "attention", "product")
    job = {**{field: settings[field] for field in fields}, "mesh": _MESH, "compiled": False}
    kept = settings["remat"]
    for _ in range(settings["repeats"]):
        try:
            found = train({**job, "remat": kept})
        except RuntimeError as error:  # JAX's and torch's are such
            if kept != "none" or not any(words in str(error) for words in _OUT_OF_MEMORY):
                raise
            found = None
        if found is None:  # only here has the failed run let go of its memory
            kept = "full"
            _free()
            found = train({**job, "remat": kept})
        yield found, kept
        _free()


def _free() -> None:
    """Gives back what the last model held: its parts refer to one another."""
    gc.collect()
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()


def _name(settings: Mapping[str, Any]) -> str:
    return f"training {settings['name']}, {settings['rows']} x {settings['tokens']} tokens"


def _tokens(settings: Mapping[str, Any]) -> int:
    return settings["rows"] * settings["tokens"]


def _mfu(settings: Mapping[str, Any], found: Mapping[str, Any]) -> float:
    """The operations that a step needs, recomputation left out, over what products of two matrices reach."""
    llama = LlamaConfig.from_json(settings["model"], "model")
    tokens = _tokens(settings)
    flops = step_flops(llama, tokens, tokens * (settings["tokens"] + 1) // 2, frozen=settings["rank"] > 0)
    return flops / found["seconds"] / found["product_flops"]
