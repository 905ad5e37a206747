"""Trains a Llama of random weights with transformers, torch.optim.AdamW and for an adapter PEFT, and takes the time.

    PEER_PYTHON third_party/peers/train_with_transformers.py JOB.json RESULT.json

PEER_PYTHON needs torch and transformers, and PEFT where an adapter is trained; clinmerge_jax is not needed. It computes
on a GPU if there is one, with torch's SDPA. JOB.json is one object:
  model         the arguments of transformers.LlamaConfig
  rows, tokens  of every step, all full
  steps         that are timed, after one that is not
  rank          of the adapter; 0 trains the weights themselves
  dtype         of the computation: trained weights are float32 with autocast, frozen ones have it themselves
  remat         "none", or else layers are checkpointed
  compiled      whether the model goes through torch.compile
  product       rows of the square matrices whose product is timed too
RESULT.json gets `seconds` a step, `first_seconds`, `product_flops` a second, `peak_bytes` (allocated on a GPU, resident
otherwise), `devices` and `loss`.
"""

import argparse
import contextlib
import json
import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

PRODUCTS = 5


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(function: Callable[[], Any], times: int = 1) -> float:
    """Seconds that calls take on average, until the device has done them."""
    synchronize()
    start = time.perf_counter()
    for _ in range(times):
        function()
    synchronize()
    return (time.perf_counter() - start) / times


def product_flops(size: int, dtype: torch.dtype, device: str) -> float:
    """Operations a second of the fastest of some products of two square matrices."""
    matrix = torch.ones(size, size, dtype=dtype, device=device)
    matrix @ matrix
    return 2 * size**3 / min(timed(lambda: matrix @ matrix) for _ in range(PRODUCTS))


def build_model(job: Mapping[str, Any], dtype: torch.dtype, device: str) -> Any:
    settings = transformers.LlamaConfig(**job["model"], attn_implementation="sdpa")
    settings.dtype = dtype if job["rank"] else torch.float32
    with torch.device(device):
        model = transformers.LlamaForCausalLM._from_config(settings).train()
    if job["rank"]:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(
            model,
            LoraConfig(r=job["rank"], lora_alpha=2 * job["rank"], target_modules="all-linear", task_type="CAUSAL_LM"),
        )
    if job["remat"] != "none":
        if job["rank"]:
            model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return torch.compile(model) if job["compiled"] else model


def train(job: Mapping[str, Any]) -> dict[str, Any]:
    """What the file's docstring says."""
    dtype = getattr(torch, job["dtype"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # as JAX multiplies float32 there
    peaks = [product_flops(job["product"], dtype, device)]
    model = build_model(job, dtype, device)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.01, fused=True)
    shape = job["rows"], job["tokens"]
    tokens = torch.tensor(np.random.default_rng(0).integers(3, job["model"]["vocab_size"], shape), device=device)
    narrow = contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(device, dtype)
    loss = torch.zeros(())

    def step() -> None:
        nonlocal loss
        optimizer.zero_grad()
        with narrow:
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    first = timed(step)
    seconds = timed(step, job["steps"])
    peaks.append(product_flops(job["product"], dtype, device))
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    return {
        "seconds": seconds,
        "first_seconds": first,
        "product_flops": max(peaks),
        "peak_bytes": peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "devices": 1,
        "loss": loss.item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("job", "result"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    args.result.write_text(json.dumps(train(json.loads(args.job.read_text()))))


if __name__ == "__main__":
    main()
