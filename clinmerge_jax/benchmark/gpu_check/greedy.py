"""Compares a Llama here and in transformers on the same device: logits and greedy answers, in float32."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
import torch
import transformers

from clinmerge_jax.benchmark.gpu_check.record import Reporter
from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.parameters.params import load_params
from clinmerge_jax.checkpoint.tokenizers.tokenizer import TOKENIZER_FILE
from clinmerge_jax.generation.engine import Engine
from clinmerge_jax.generation.parity import compare
from clinmerge_jax.parallel.layout import one_device

_PROMPTS = (
    "The patient was admitted with chest pain and shortness of breath.",
    "Explain in two sentences why the sky is blue.",
    "Once upon a time, there was a little girl who lived near the sea.",
    "List three common side effects of antibiotics.",
    "Blood pressure 142 over 88, heart rate 76, temperature 37.2.",
    "Write a short letter to a friend about the weather.",
    "Doctor: How are you feeling today? Patient:",
    "What is the capital of France, and which river flows through it?",
)


def measure(settings: Mapping[str, Any], report: Reporter) -> None:
    """Compares; see `parts.PARTS` for the settings.

    Raises:
      AssertionError: greedy answers differ where the likeliest token leads by more than `margin`.
    """
    jax.config.update("jax_default_matmul_precision", "highest")
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    checkpoint = open_checkpoint(settings["model"], "--model")
    llama, params = load_params(checkpoint, jnp.float32)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint.path, dtype=torch.float32, local_files_only=True
    )
    theirs = theirs.eval().to(device)
    tokenizer = tokenizers.Tokenizer.from_file(str(checkpoint.path / TOKENIZER_FILE))
    prompts = [np.array(tokenizer.encode(text).ids, np.int32) for text in _PROMPTS[: settings["prompts"]]]
    theirs.generation_config.eos_token_id = None  # so that all answers have full length
    engine = Engine(one_device(llama), params, slots=1, length=max(map(len, prompts)) + settings["new"])
    with torch.inference_mode():
        found = [compare(tokens, params, llama, engine, theirs, (), settings["new"]) for tokens in prompts]
    model = f"hidden size {llama.hidden_size}, {llama.num_hidden_layers} layers"
    answered, same = sum(one.answered for one in found), sum(one.same for one in found)
    margins = [one.margin for one in found if one.margin is not None]
    report.add(f"greedy tokens as in transformers, of {answered}", [same], "", model=model, margins=margins)
    agreement = float(np.mean([one.agreement for one in found]))
    report.add("same likeliest token, share of positions", [agreement], "", model=model)
    report.add("largest difference of a logit", [max(one.largest for one in found)], "", model=model)
    if margins and max(margins) > settings["margin"]:
        raise AssertionError(
            f"{len(margins)} of {len(found)} answers differ from those of transformers; at a first difference its"
            f" likeliest token leads by up to {max(margins):.3g}"
        )
