"""Compares a model with the same checkpoint in transformers and torch: logits, hidden states, greedy answers.

Reads the prompts, runs both models on each, and reports how far logits and hidden states differ, how often both models
have the same likeliest next token, and for how many tokens their greedy answers agree.
"""

import dataclasses
import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import tqdm
from ml_collections import ConfigDict

from clinmerge_jax import provenance
from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.output import OutputFolder, OutputState
from clinmerge_jax.checkpoint.parameters.params import llama_config, load_params
from clinmerge_jax.checkpoint.tokenizers.tokenizer import load_tokenizer
from clinmerge_jax.errors import BadInput
from clinmerge_jax.generation.engine import Engine
from clinmerge_jax.generation.parity import Comparison, compare
from clinmerge_jax.generation.prompts import prepare
from clinmerge_jax.generation.stopping import stop_ids
from clinmerge_jax.llama.attention import Use, resolve
from clinmerge_jax.parallel.layout import one_device
from clinmerge_jax.report.tables import table

_DTYPES = ("float32", "bfloat16")


def run(config: ConfigDict) -> None:
    """Runs the comparison that the config describes; see configs/compare.py for its fields."""
    checkpoint = open_checkpoint(config.model, "config.model")
    llama = llama_config(checkpoint)
    if config.dtype not in _DTYPES:
        raise BadInput(f"config.dtype: {config.dtype!r} is unknown; give one of {', '.join(_DTYPES)}")
    layout = one_device(llama)
    attention = resolve(config.attention, Use.SEQUENCES, llama, config.dtype, layout.device)
    try:
        import torch
        import transformers
    except ImportError as error:
        raise BadInput("configs/compare.py: torch is not installed; pip install clinmerge_jax[reference]") from error
    tokenizer = load_tokenizer(checkpoint.path, "config.model")
    prompts, tokens = prepare(config, tokenizer, llama)
    identity = {
        "job": "compare",
        "inputs": {"model": provenance.fingerprint(checkpoint)},
        "prompts": [row.tolist() for row in tokens],
        "max_new_tokens": config.max_new_tokens,
        "dtype": config.dtype,
        "layers": config.layers,
        "attention": config.attention,
    }
    with OutputFolder(config.output, identity, config.overwrite, provenance.same_result) as output:
        output.refuse_overlap({"config.model": checkpoint.path})
        if output.open() is OutputState.FINISHED:
            print(f"{output.target} is finished already: same model, prompts and settings, nothing to do.")
            return
        _, params = load_params(checkpoint, jnp.dtype(config.dtype))
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            checkpoint.path, dtype=getattr(torch, config.dtype), local_files_only=True
        ).eval()
        ids = stop_ids(checkpoint)
        engine = Engine(layout, params, slots=1, length=max(map(len, tokens)) + config.max_new_tokens, stop_ids=ids)
        found = []
        with tqdm.tqdm(total=len(tokens), desc="compare", unit="prompt") as bar, torch.inference_mode():
            for row in tokens:
                one = compare(
                    row, params, llama, engine, theirs, ids, config.max_new_tokens, attention, layers=config.layers
                )
                found.append(one)
                bar.update()
        rows = [{"id": prompt.id, **dataclasses.asdict(one)} for prompt, one in zip(prompts, found)]
        output.write_text("comparison.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        text = _text(found, config)
        output.write_text("README.md", f"# {output.target.name}: here against transformers\n\n{text}\n")
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        digests = {"model": provenance.digests(checkpoint, {})}
        output.commit({**provenance.environment(), "reference": versions, "sha256": digests})
    print(f"\n{text}")
    print(f"\nThe figures of every prompt are in {output.target / 'comparison.jsonl'}.")


def _text(found: list[Comparison], config: ConfigDict) -> str:
    tokens = sum(one.tokens for one in found)

    def mean(name: str) -> float:
        return sum(one.tokens * getattr(one, name) for one in found) / tokens

    parted = [one for one in found if one.margin is not None]
    facts: list[tuple[str, Any]] = [
        ("prompts", len(found)),
        ("positions", tokens),
        ("largest difference of a logit", f"{max(one.largest for one in found):.3g}"),
        ("root mean square difference", f"{np.sqrt(_mean_square(found)):.3g}"),
        ("KL(transformers || here), nats, mean", f"{mean('divergence'):.3g}"),
        ("same likeliest token", f"{mean('agreement'):.4%}"),
        ("greedy tokens before a first difference", f"{sum(one.same for one in found)} of"
                                                    f" {sum(one.answered for one in found)}"),
        ("answers that part", f"{len(parted)}" + (f" (largest margin there {max(one.margin for one in parted):.2g})"
                                                  if parted else "")),
    ]  # fmt: skip
    lines = [table([f"{config.dtype}, here against transformers", ""], [[name, str(value)] for name, value in facts])]
    if config.layers:
        worst = np.max([one.layers for one in found], axis=0)
        rows = [[f"into layer {index}", f"{value:.2g}"] for index, value in enumerate(worst)]
        lines.append(table(["hidden state", "largest |here - transformers| / |transformers|"], rows))
    return "\n\n".join(lines)


def _mean_square(found: list[Comparison]) -> float:
    """The mean squared difference over all logits."""
    return sum(one.tokens * one.rms**2 for one in found) / sum(one.tokens for one in found)
