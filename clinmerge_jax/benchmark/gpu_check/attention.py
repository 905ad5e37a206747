"""Compares an attention kernel with the reference: values, gradients, and speed."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from clinmerge_jax.benchmark.gpu_check.record import Reporter
from clinmerge_jax.benchmark.measuring.device import peak_bytes
from clinmerge_jax.llama.attention import Backend, Use, over_sequences, resolve
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.parallel.layout import one_device


def measure(settings: Mapping[str, Any], report: Reporter) -> None:
    """Compares; see `parts.PARTS` for the settings. B rows, T tokens, N query heads, G key-value heads, H head_dim.

    Raises:
      BadInput: the kernel is not available here.
      AssertionError: the relative distance of its values or gradients to the float32 reference is not under `error`.
    """
    llama = LlamaConfig.from_json(settings["model"], "model")
    dtype = jnp.dtype(settings["dtype"])
    kernel = resolve(settings["kernel"], Use.SEQUENCES, llama, dtype, one_device(llama).device)
    rows, tokens = settings["rows"], settings["tokens"]
    heads = (llama.num_attention_heads, llama.num_key_value_heads, llama.num_key_value_heads, llama.num_attention_heads)
    *inputs, slope_BTNH = (
        jax.random.normal(key, (rows, tokens, count, llama.head_dim), dtype)
        for key, count in zip(jax.random.split(jax.random.key(0), 4), heads)
    )
    forward = {one: jax.jit(over_sequences(one)) for one in (kernel, Backend.REFERENCE)}
    both = {one: _with_gradients(over_sequences(one)) for one in (kernel, Backend.REFERENCE)}
    with jax.default_matmul_precision("highest"):
        wide = [x.astype(jnp.float32) for x in (*inputs, slope_BTNH)]
        truth = both[Backend.REFERENCE](*wide)
    found = {one: both[one](*inputs, slope_BTNH) for one in both}
    shape = {"shape": f"{rows} x {tokens} tokens, {heads[0]} heads over {heads[1]}, head_dim {llama.head_dim}"}
    errors = {}
    for index, name in enumerate(("values", "gradient of queries", "gradient of keys", "gradient of values")):
        errors[name], expected = (_distance(found[one][index], truth[index]) for one in (kernel, Backend.REFERENCE))
        report.add(
            f"attention, {settings['kernel']}, {name}: distance to float32", [errors[name]], "",
            ratios=[errors[name] / expected] if expected else (),
            ratio_of=f"of the reference's in {dtype}", **shape,
        )  # fmt: skip
    for name, programs, given in (("forward", forward, inputs), ("with gradients", both, (*inputs, slope_BTNH))):
        times: dict[Backend, list[float]] = {kernel: [], Backend.REFERENCE: []}
        for _ in range(settings["repeats"]):
            for one in times:
                times[one].append(_seconds(lambda: programs[one](*given), settings["calls"]))  # noqa: B023
        ratios = [slow / fast for fast, slow in zip(times[kernel], times[Backend.REFERENCE])]
        report.add(
            f"attention, {settings['kernel']}, {name}", [1e3 * one for one in times[kernel]], "ms",
            ratios=ratios, ratio_of="the reference's time / its", peak_bytes=peak_bytes(), **shape,
        )  # fmt: skip
    if "error" in settings and not max(errors.values()) < settings["error"]:
        raise AssertionError(f"{settings['kernel']} differs from the float32 reference by {max(errors.values()):.3g}")


def _with_gradients(attend: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, ...]]:
    """A compiled function: values, and gradients of queries, keys and values given the gradient of the output."""

    def run(q_BTNH: jax.Array, k_BTGH: jax.Array, v_BTGH: jax.Array, slope_BTNH: jax.Array) -> tuple[jax.Array, ...]:
        y_BTNH, pull = jax.vjp(attend, q_BTNH, k_BTGH, v_BTGH)
        return y_BTNH, *pull(slope_BTNH)

    return jax.jit(run)


def _distance(x: jax.Array, truth: jax.Array) -> float:
    """Relative distance |x - truth| / |truth|."""
    return float(jnp.linalg.norm(x.astype(jnp.float32) - truth) / jnp.linalg.norm(truth))


def _seconds(function: Callable[[], Any], calls: int) -> float:
    """Seconds per call, over several calls in a row."""
    jax.block_until_ready(function())
    start = time.perf_counter()
    for _ in range(calls):
        found = function()
    jax.block_until_ready(found)
    return (time.perf_counter() - start) / calls
