"""The table of parts, most valuable first: time limits, memory, and settings on a GPU and in a rehearsal.

Seconds are counted from the end of a process's imports. Memory is what a part holds on an 80 GB card, in GB of 1e9
bytes: the arrays named beside it. The measured peak is in the part's figures.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from clinmerge_jax.benchmark.measuring.shapes import LLAMA_1B, LLAMA_8B

_SMALL = {
    **LLAMA_8B, "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Part:
    """One process of the check.

    Attributes:
      name: of the part.
      function: MODULE:FUNCTION in this package, called with the settings and a `Reporter`.
      limit: seconds after which the part is killed.
      least: seconds that must be left of the budget for it to start.
      memory: what it holds in device memory.
      gigabytes: how much that is.
      settings: on a GPU.
      rehearsal: settings that differ in a rehearsal on a CPU.
      packages: packages that it needs beyond clinmerge_jax.
    """

    name: str
    function: str
    limit: float
    least: float
    memory: str
    gigabytes: float
    settings: Mapping[str, Any]
    rehearsal: Mapping[str, Any]
    packages: tuple[str, ...] = ("jax", "flax")


_TORCH = ("torch", "transformers")
_TRAINING = ("jax", "flax", "optax", "grain")
_DECODE = {"model": LLAMA_8B, "dtype": "bfloat16", "batches": (1, 8, 64, 256), "prompt": 128, "new": 65, "repeats": 3}
_SMALL_DECODE = {"model": _SMALL, "dtype": "float32", "batches": (1, 2), "prompt": 8, "new": 33, "repeats": 1}
_PROMPTS = {"model": LLAMA_8B, "dtype": "bfloat16", "batch": 8, "prompt": 2048, "product": 8192, "repeats": 3}
_SMALL_PROMPTS = {"model": _SMALL, "dtype": "float32", "batch": 2, "prompt": 16, "product": 64, "repeats": 1}
_TRAIN = {"dtype": "bfloat16", "steps": 4, "repeats": 3, "product": 8192, "remat": "none", "attention": "auto"}
_LORA = {**_TRAIN, "name": "LoRA, rank 16", "model": LLAMA_8B, "rank": 16, "rows": 1, "tokens": 4096}
_FULL = {**_TRAIN, "name": "all weights", "model": LLAMA_1B, "rank": 0, "rows": 4, "tokens": 2048}
_SMALL_TRAIN = {"model": _SMALL, "dtype": "float32", "steps": 1, "repeats": 1, "product": 64, "rows": 1, "tokens": 16}

PARTS = (
    Part(
        "parity", "greedy:measure", 60, 20, "a model of at most 3e9 parameters twice in float32", 24,
        {"model": "miniature:instruct", "new": 64, "prompts": 8, "margin": 1e-3}, {"new": 8, "prompts": 2},
        ("jax", "flax", *_TORCH),
    ),
    Part(
        "merge", "merging:measure", 110, 40, "two 8B models and their merge; for ties three of 4 layers and theirs", 49,
        {"model": LLAMA_8B, "ties_layers": 4, "points": 5, "repeats": 3, "ties_repeats": 2},
        {"model": _SMALL, "ties_layers": 1, "points": 1, "repeats": 1, "ties_repeats": 1},
    ),
    Part(
        "decode", "generation:decode", 130, 45, "weights stacked and by layer, the cache of 256 x 193 tokens", 41,
        _DECODE, _SMALL_DECODE,
    ),
    Part(
        "decode_peer", "generation:decode_peer", 90, 30, "weights, the cache of 256 x 193 tokens", 30,
        _DECODE, _SMALL_DECODE, _TORCH,
    ),
    Part(
        "lora", "training:measure", 100, 40, "weights, activations of 4,096 tokens in 32 layers", 50,
        _LORA, _SMALL_TRAIN, _TRAINING,
    ),
    Part(
        "lora_peer", "training_peer:measure", 70, 30, "the same, or layers checkpointed where that does not fit", 76,
        _LORA, _SMALL_TRAIN, (*_TORCH, "peft"),
    ),
    Part(
        "full", "training:measure", 80, 35, "1.5e9 weights, gradients and moments in float32, activations", 45,
        _FULL, _SMALL_TRAIN, _TRAINING,
    ),
    Part(
        "full_peer", "training_peer:measure", 60, 30, "the same, or layers checkpointed where that does not fit", 76,
        _FULL, _SMALL_TRAIN, _TORCH,
    ),
    Part(
        "attention", "attention:measure", 50, 20, "scores of one block of 4,096 tokens in float32", 8,
        {"model": LLAMA_8B, "kernel": "cudnn", "dtype": "bfloat16", "rows": 2, "tokens": 4096, "calls": 10,
         "repeats": 5, "error": 0.02},
        {"model": _SMALL, "kernel": "reference", "rows": 1, "tokens": 256, "calls": 2, "repeats": 1},
    ),
    Part(
        "prompts", "generation:prompts", 80, 40, "weights stacked and by layer, the cache of 8 x 2,049 tokens", 38,
        _PROMPTS, _SMALL_PROMPTS,
    ),
    Part(
        "prompts_peer", "generation:prompts_peer", 60, 25, "weights, the cache, scores of 8 x 2,048 tokens", 35,
        _PROMPTS, _SMALL_PROMPTS, _TORCH,
    ),
)  # fmt: skip


def part_named(name: str) -> Part:
    """The part of that name in `PARTS`."""
    return next(part for part in PARTS if part.name == name)
