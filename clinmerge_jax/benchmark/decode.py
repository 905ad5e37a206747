"""Benchmarks generation with random weights: prefill and decode at several batch sizes.

The floor of a decode step is the memory that it must read (every weight once, and the keys and values so far) at the
bandwidth of a copy measured in the same repeat. The floor of prefill is the operations that it needs, at the speed of a
product of two matrices measured in the same repeat. The peer is transformers on the same device, eager and, if
`config.peer_compiled`, compiled with a static cache.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from clinmerge_jax.benchmark import generating
from clinmerge_jax.benchmark.measuring import measure
from clinmerge_jax.benchmark.measuring.device import copy_bandwidth, product_flops
from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.attention import Use, resolve
from clinmerge_jax.llama.cache import cache_bytes
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.parameters import count_parameters, init_params
from clinmerge_jax.parallel.layout import make_layout
from clinmerge_jax.parallel.mesh import MeshShape

_FLOOR = "floor: weights and cache read once a step"
_READING_FLOOR = "floor: products of prompts"


def run(config: ConfigDict) -> None:
    """Runs the benchmark; see configs/benchmark.py for its fields."""
    llama = LlamaConfig.from_json(config.model.to_dict(), "config.model")
    measure.check_counts(config, "repeats", "product")
    if config.prompt + config.new > llama.max_position_embeddings or config.prompt < 1 or config.new < 2:
        raise BadInput(f"config.prompt: {config.prompt} and config.new {config.new} do not fit the model's context")
    place = measure.place_with_space(config.output, 1e6)
    dtype = jnp.dtype(config.dtype)
    layout = make_layout(llama, MeshShape(**config.mesh))
    resolve(config.attention, Use.CACHE, llama, dtype, layout.device, length=config.prompt + config.new)
    params = jax.block_until_ready(
        jax.jit(lambda: init_params(llama, jax.random.key(0), dtype), out_shardings=layout.shardings())()
    )
    weights = count_parameters(llama) * dtype.itemsize
    measured: dict[str, list[dict[str, float]]] = {}
    floors: dict[str, str] = {}
    for batch in config.batches:
        prompts = np.random.default_rng(batch).integers(3, llama.vocab_size, (batch, config.prompt))
        ours = generating.ours(layout, params, prompts, config.new, config.attention)
        programs = {f"clinmerge_jax, batch {batch}": ours}
        if config.peer:
            programs |= _peers(config, prompts, dtype.name)
        floor = f"{_FLOOR}, batch {batch}"
        for generate in programs.values():
            generate(config.new)  # compiles, and is not counted
            generate(1)
        for repeat in range(config.repeats):
            steps = config.new - 1
            kept = cache_bytes(llama, batch, config.prompt, dtype) + cache_bytes(llama, batch, config.new // 2, dtype)
            seconds = steps * (weights + kept) / copy_bandwidth(weights)
            _add(measured, floors, floor, floor, seconds, batch * steps / seconds)
            least = generating.reading_flops(llama, batch, config.prompt) / product_flops(config.product, dtype)
            reading_floor = f"{_READING_FLOOR}, batch {batch}"
            _add(measured, floors, reading_floor, reading_floor, least, batch * config.prompt / least)
            for name, generate in programs.items():
                first = generate(1)
                decoded = generate(config.new) - first
                _add(measured, floors, name, floor, decoded, batch * steps / decoded)
                _add(measured, floors, f"{name}: prompts", reading_floor, first, batch * config.prompt / first)
                logging.info("repeat %d, %s: %.0f tokens/s", repeat + 1, name, batch * steps / decoded)
    measure.record(place / "decode.json", measured, weights=weights, mesh=dict(layout.mesh.shape))
    print(measure.ratios_table(measured, floors, "decoding"))
    for name, runs in measured.items():
        print(f"{name}: {np.median([run['tokens_per_second'] for run in runs]):.0f} tokens/s")
    for batch in config.batches if config.peer else ():
        for what in ("", ": prompts"):
            ours, theirs = (measured[f"{who}, batch {batch}{what}"] for who in ("clinmerge_jax", "transformers"))
            ratios = [one["tokens_per_second"] / two["tokens_per_second"] for one, two in zip(ours, theirs)]
            print(
                f"clinmerge_jax / transformers, batch {batch}{what}: {np.median(ratios):.2f}"
                f" ({min(ratios):.2f} to {max(ratios):.2f})"
            )
    print(
        f"{config.repeats} repeats; prompts of {config.prompt} tokens, {config.new} new ones; {weights / 1e9:.2f} GB of"
        f" {dtype} weights on {layout.mesh.size} {jax.devices()[0].device_kind} devices."
    )
    print(f"\nThe figures of every run are in {place / 'decode.json'}.")


def _add(measured, floors, name: str, floor: str, seconds: float, rate: float) -> None:
    measured.setdefault(name, []).append({"seconds": seconds, "tokens_per_second": rate})
    floors[name] = floor


def _peers(config: ConfigDict, prompts: np.ndarray, dtype: str) -> dict[str, generating.Generate]:
    """transformers' `generate` with random weights of the same shapes, by row name."""
    try:
        model = generating.peer_model(config.model.to_dict(), dtype)
    except ImportError as error:
        raise BadInput("config.peer: torch is not installed; install it, or set config.peer to False") from error
    found = {f"transformers, batch {len(prompts)}": generating.peer(model, prompts)}
    if config.peer_compiled:
        compiled = f"transformers, compiled, batch {len(prompts)}"
        found[compiled] = generating.peer(model, prompts, cache_implementation="static")
    return found
