"""Decode and prefill with random weights, by this package and by transformers, each as a separate process."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clinmerge_jax.benchmark import generating
from clinmerge_jax.benchmark.gpu_check.record import Reporter
from clinmerge_jax.benchmark.measuring.device import copy_bandwidth, peak_bytes, product_flops
from clinmerge_jax.llama.cache import cache_bytes
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.parameters import Params, count_parameters, init_params
from clinmerge_jax.parallel.layout import Layout, one_device

_COPIED = 4 * 10**9  # bytes; large enough that the launch is a small part of a copy
_ROOFLINE = "of the roofline"  # reading weights and cache once a step at the bandwidth of a copy
_PRODUCTS = "MFU"  # relative to a product of two matrices measured in the same repeat


def decode(settings: Mapping[str, Any], report: Reporter) -> None:
    """Measures decoded tokens per second at several batch sizes; see `parts.PARTS` for the settings."""
    llama, layout, params = _made(settings)
    dtype, steps = jnp.dtype(settings["dtype"]), settings["new"] - 1
    weights = _read_weights(llama) * dtype.itemsize
    for batch in settings["batches"]:
        prompts = _prompts(llama, batch, settings["prompt"])
        generate = generating.ours(layout, params, prompts, settings["new"])
        generate(settings["new"])  # compiles
        cached = sum(cache_bytes(llama, batch, many, dtype) for many in (settings["prompt"], settings["new"] // 2))
        rates, shares = [], []
        for _ in range(settings["repeats"]):
            least = steps * (weights + cached) / copy_bandwidth(weights, _COPIED)
            seconds = _decoding(generate, settings["new"])
            rates.append(batch * steps / seconds)
            shares.append(least / seconds)
            report.add(
                _decode_name(batch), rates, "tokens/s", ratios=shares, ratio_of=_ROOFLINE, peak_bytes=peak_bytes(),
                prompt=settings["prompt"], new=settings["new"],
            )  # fmt: skip


def decode_peer(settings: Mapping[str, Any], report: Reporter) -> None:
    """Measures decoded tokens per second of transformers, eager, with torch's SDPA."""
    llama, model = LlamaConfig.from_json(settings["model"], "model"), _peer_model(settings)
    for batch in settings["batches"]:
        generate = generating.peer(model, _prompts(llama, batch, settings["prompt"]))
        generate(2)
        rates = []
        for _ in range(settings["repeats"]):
            rates.append(batch * (settings["new"] - 1) / _decoding(generate, settings["new"]))
            report.against_ours(f"{_decode_name(batch)}, transformers", rates, "tokens/s", _decode_name(batch),
                                peak_bytes=_torch_peak())  # fmt: skip


def prompts(settings: Mapping[str, Any], report: Reporter) -> None:
    """Measures prefill, in prompt tokens per second; see `parts.PARTS` for the settings."""
    llama, layout, params = _made(settings)
    batch, length = settings["batch"], settings["prompt"]
    generate = generating.ours(layout, params, _prompts(llama, batch, length), 1)
    del params  # the engine has its own copy
    generate(1)  # compiles
    flops = generating.reading_flops(llama, batch, length)
    rates, shares = [], []
    for _ in range(settings["repeats"]):
        peak = product_flops(settings["product"], jnp.dtype(settings["dtype"]))
        seconds = generate(1)
        rates.append(batch * length / seconds)
        shares.append(flops / seconds / peak)
        report.add(_prompts_name(settings), rates, "tokens/s", ratios=shares, ratio_of=_PRODUCTS,
                   peak_bytes=peak_bytes())  # fmt: skip


def prompts_peer(settings: Mapping[str, Any], report: Reporter) -> None:
    """Measures prefill by transformers, in prompt tokens per second."""
    llama = LlamaConfig.from_json(settings["model"], "model")
    generate = generating.peer(_peer_model(settings), _prompts(llama, settings["batch"], settings["prompt"]))
    generate(1)
    name, rates = _prompts_name(settings), []
    for _ in range(settings["repeats"]):
        rates.append(settings["batch"] * settings["prompt"] / generate(1))
        report.against_ours(f"{name}, transformers", rates, "tokens/s", name, peak_bytes=_torch_peak())


def _made(settings: Mapping[str, Any]) -> tuple[LlamaConfig, Layout, Params]:
    """The config, layout and random weights of a model, made on the device."""
    llama = LlamaConfig.from_json(settings["model"], "model")
    layout = one_device(llama)
    return llama, layout, jax.block_until_ready(init_params(llama, jax.random.key(0), jnp.dtype(settings["dtype"])))


def _read_weights(llama: LlamaConfig) -> int:
    """Number of weights that a decode step reads. An embedding not tied to the head is left out: few rows are read."""
    return count_parameters(llama) - (not llama.tie_word_embeddings) * llama.vocab_size * llama.hidden_size


def _prompts(llama: LlamaConfig, batch: int, length: int) -> np.ndarray:
    return np.random.default_rng(batch).integers(3, llama.vocab_size, (batch, length))


def _decoding(generate: generating.Generate, new: int) -> float:
    """Seconds of all tokens but the first, which prefill gives."""
    first = generate(1)
    return generate(new) - first


def _decode_name(batch: int) -> str:
    return f"decoding, batch {batch}"


def _prompts_name(settings: Mapping[str, Any]) -> str:
    return f"reading {settings['batch']} prompts of {settings['prompt']} tokens"


def _peer_model(settings: Mapping[str, Any]) -> Any:
    return generating.peer_model(settings["model"], settings["dtype"])


def _torch_peak() -> int | None:
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
