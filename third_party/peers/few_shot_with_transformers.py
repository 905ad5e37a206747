"""Trains a Llama of random weights on given examples with transformers and PEFT, a step for every line of its input.

    PEER_PYTHON third_party/peers/few_shot_with_transformers.py JOB.json

PEER_PYTHON needs torch, transformers and PEFT; clinmerge_jax is not needed. Each batch is padded to its longest
example, and what is padding or prompt has the label -100. JOB.json is one object:
  model       the arguments of transformers.LlamaConfig
  examples    in the order of training: `tokens`, and how many of them are the `prompt`
  batch_size  of each step
  rank        of the adapter; 0 trains the weights themselves
  length      tokens that no example exceeds
  product     rows of the square matrices whose product is timed too
A step on the longest batch comes first and is not counted; `first` then says that nothing was compiled. Each line of
standard input then asks for a step, which is answered by a line of JSON: `seconds`, `loss`, tokens `computed`,
`product_flops` a second, `peak_bytes`.
"""

import json
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from train_with_transformers import build_model, product_flops, synchronize


def padded(examples: Sequence[Mapping[str, Any]], device: str) -> dict[str, torch.Tensor]:
    """A batch as transformers' collators make it."""
    longest = max(len(one["tokens"]) for one in examples)
    batch = {"input_ids": [], "attention_mask": [], "labels": []}
    for one in examples:
        tokens, missing = one["tokens"], longest - len(one["tokens"])
        batch["input_ids"].append(tokens + [0] * missing)
        batch["attention_mask"].append([1] * len(tokens) + [0] * missing)
        batch["labels"].append([-100] * one["prompt"] + tokens[one["prompt"] :] + [-100] * missing)
    return {name: torch.tensor(rows, device=device) for name, rows in batch.items()}


def answer(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build_model({**job, "remat": "none", "compiled": False}, torch.float32, device)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.01, fused=True)
    size = job["batch_size"]
    batches = [padded(job["examples"][start : start + size], device) for start in range(0, len(job["examples"]), size)]

    def step(batch: Mapping[str, torch.Tensor]) -> float:
        optimizer.zero_grad()
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return loss.item()

    step(max(batches, key=lambda batch: batch["input_ids"].numel()))
    answer(first={})
    for batch, _ in zip(batches, sys.stdin):
        synchronize()
        start = time.perf_counter()
        loss = step(batch)
        synchronize()
        answer(
            seconds=time.perf_counter() - start,
            loss=loss,
            computed=batch["input_ids"].numel(),
            product_flops=product_flops(job["product"], torch.float32, device),
            peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        )


if __name__ == "__main__":
    main()
