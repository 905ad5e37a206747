"""Trains a Llama with transformers, torch.optim.AdamW and, for an adapter, PEFT or the same sum written out.

    PYTHON third_party/reference/train_with_torch.py JOB.json WEIGHTS.npz RESULT.npz

PYTHON needs torch and transformers, and for `"lora": {"by": "peft", ...}` PEFT (requirements-peft.txt); clinmerge_jax
is not needed. Everything is computed on the CPU. JOB.json is one object:
  config     the arguments of transformers.LlamaConfig
  dtype      "float64" or "float32". In float64 norms and rotary angles are computed in it too, where transformers would
             go through float32
  steps      a list of steps, each a list of micro-batches, each a list of rows {"tokens": [...], "targets": [...]};
             targets[i] says whether token i is learned
  optimizer  learning_rate, final_share, warmup_steps, weight_decay, beta1, beta2, eps, clip_norm
  lora       null, or by ("peft" or "hand"), rank, alpha, targets, rank_stabilized
WEIGHTS.npz holds every tensor by its name, of an adapter by MODULE.lora_A and MODULE.lora_B. RESULT.npz gets the
trained ones by the same names, and for every step `losses` (mean over its target tokens), `norms` (of the gradients,
before clipping) and `rates`.
"""

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers


class LowRankLinear(torch.nn.Module):
    """A linear layer with scaling * B A beside it, the layer itself frozen."""

    def __init__(self, base: torch.nn.Linear, rank: int, scaling: float) -> None:
        super().__init__()
        self.base, self.scaling = base, scaling
        self.lora_A = torch.nn.Parameter(base.weight.new_zeros(rank, base.in_features))
        self.lora_B = torch.nn.Parameter(base.weight.new_zeros(base.out_features, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.scaling * (x @ self.lora_A.T) @ self.lora_B.T


def compute_in_float64(model: transformers.LlamaForCausalLM) -> None:
    """Replaces the two places that go through float32: the norms and the rotary angles."""
    for module in model.modules():
        if type(module).__name__ == "LlamaRMSNorm":
            shape, eps = module.weight.shape, module.variance_epsilon
            module.forward = lambda x, m=module, n=shape, e=eps: torch.nn.functional.rms_norm(x, n, m.weight, e)
    config = model.config
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    frequencies = config.rope_parameters["rope_theta"] ** -exponents

    def angles(x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        half = position_ids[..., None].double() * frequencies
        whole = torch.cat((half, half), dim=-1)
        return whole.cos(), whole.sin()

    model.model.rotary_emb.forward = angles


def add_adapter(model: Any, lora: Mapping[str, Any]) -> tuple[Any, dict[str, torch.nn.Parameter]]:
    """The model with an adapter, everything else frozen, and its factors by MODULE.lora_A and MODULE.lora_B."""
    if lora["by"] == "peft":
        from peft import LoraConfig, get_peft_model

        settings = LoraConfig(
            r=lora["rank"],
            lora_alpha=lora["alpha"],
            target_modules=lora["targets"],
            use_rslora=lora["rank_stabilized"],
            task_type="CAUSAL_LM",
        )
        dtype = model.dtype
        model = get_peft_model(model, settings).to(dtype)
        named = [(name, value) for name, value in model.named_parameters() if ".lora_" in name]
        prefix, suffix = "base_model.model.", ".default.weight"
        return model, {name.removeprefix(prefix).removesuffix(suffix): value for name, value in named}
    model.requires_grad_(False)
    rank = lora["rank"]
    scaling = lora["alpha"] / (math.sqrt(rank) if lora["rank_stabilized"] else rank)
    factors = {}
    for name, module in list(model.named_modules()):
        parent, _, last = name.rpartition(".")
        if last in lora["targets"]:
            layer = LowRankLinear(module, rank, scaling)
            setattr(model.get_submodule(parent), last, layer)
            factors |= {f"{name}.lora_A": layer.lora_A, f"{name}.lora_B": layer.lora_B}
    return model, factors


def summed_loss(model: Any, rows: list[dict[str, list]]) -> torch.Tensor:
    """The cross-entropy of all target tokens of some rows, which are padded on the right."""
    length = max(len(row["tokens"]) for row in rows)
    tokens, seen, targets = (torch.zeros(len(rows), length, dtype=torch.long) for _ in range(3))
    for index, row in enumerate(rows):
        count = len(row["tokens"])
        tokens[index, :count] = torch.tensor(row["tokens"])
        targets[index, :count] = torch.tensor(row["targets"], dtype=torch.long)
        seen[index, :count] = 1
    logits = model(input_ids=tokens, attention_mask=seen).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    return losses[targets[:, 1:].flatten().bool()].sum()


def train(job: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the file's docstring says, from arrays to arrays."""
    dtype = getattr(torch, job["dtype"])
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**job["config"], attn_implementation="sdpa"))
    model = model.to(dtype).train()
    if dtype == torch.float64:
        compute_in_float64(model)
    named = dict(model.named_parameters())
    trained = named
    if job["lora"]:
        model, trained = add_adapter(model, job["lora"])
    with torch.no_grad():
        for name, parameter in {**named, **trained}.items():
            parameter.copy_(torch.tensor(weights[name]))
    settings = job["optimizer"]
    decayed = [value for name, value in trained.items() if "norm" not in name and not name.endswith("bias")]
    others = [value for name, value in trained.items() if "norm" in name or name.endswith("bias")]
    groups = [{"params": decayed, "weight_decay": settings["weight_decay"]}]
    groups += [{"params": others, "weight_decay": 0.0}] if others else []
    betas = (settings["beta1"], settings["beta2"])
    optimizer = torch.optim.AdamW(groups, lr=settings["learning_rate"], betas=betas, eps=settings["eps"])
    scheduler = transformers.get_scheduler(
        "cosine_with_min_lr",
        optimizer,
        num_warmup_steps=settings["warmup_steps"],
        num_training_steps=len(job["steps"]),
        scheduler_specific_kwargs={"min_lr_rate": settings["final_share"]},
    )
    losses, norms, rates = [], [], []
    for step in job["steps"]:
        count = sum(sum(row["targets"][1:]) for rows in step for row in rows)
        optimizer.zero_grad()
        parts = [summed_loss(model, rows) / count for rows in step]
        for part in parts:
            part.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(list(trained.values()), settings["clip_norm"]).item())
        rates.append(scheduler.get_last_lr()[0])
        losses.append(sum(part.item() for part in parts))
        optimizer.step()
        scheduler.step()
    figures = {"losses": np.array(losses), "norms": np.array(norms), "rates": np.array(rates)}
    return {**{name: value.detach().numpy() for name, value in trained.items()}, **figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("job", "weights", "result"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    with np.load(args.weights) as weights:
        result = train(json.loads(args.job.read_text()), dict(weights))
    np.savez(args.result, **result)


if __name__ == "__main__":
    main()
