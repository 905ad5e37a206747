"""Times generation with random weights by the engine, and by transformers' `generate` on the same prompts.

B prompts of C tokens each.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from clinmerge_jax.generation.engine import Engine, Request
from clinmerge_jax.llama.attention import Backend
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.parameters import Params, count_inner_parameters
from clinmerge_jax.parallel.layout import Layout

Generate = Callable[[int], float]  # reads all prompts, generates that many tokens for each, and returns the seconds


def reading_flops(config: LlamaConfig, batch: int, length: int) -> float:
    """Operations of prefill up to the first new token, two for each multiplication with its addition.

    The head and, in the last layer, everything but keys and values are counted for a prompt's last token only.
    Attention scores and weighted sums are counted exactly.

    Args:
      config: the architecture.
      batch: number of prompts.
      length: tokens of each prompt.
    """
    head = config.vocab_size * config.hidden_size
    layers = count_inner_parameters(config)
    layer = layers / config.num_hidden_layers
    keys_and_values = 2 * config.hidden_size * config.num_key_value_heads * config.head_dim
    last = layer - keys_and_values
    weights = length * (layers - last) + last + head
    pairs = (config.num_hidden_layers - 1) * length * (length + 1) // 2 + length
    return batch * (2 * weights + 4 * config.num_attention_heads * config.head_dim * pairs)


def ours(
    layout: Layout, params: Params, prompts: np.ndarray, new: int, attention: str | Backend = Backend.AUTO
) -> Generate:
    """The engine, with one slot for each prompt.

    Args:
      layout: how the parameters are sharded.
      params: the model's. The engine makes its own copy, so the caller may free them.
      prompts: token ids, [B, C].
      new: the most tokens that are generated for each prompt.
      attention: kernel of the decode steps.

    Raises:
      BadInput: as `Engine`.
    """
    engine = Engine(
        layout, params, slots=len(prompts), length=prompts.shape[1] + new, share_prefix=False, attention=attention
    )

    def generate(new: int) -> float:
        start = time.perf_counter()
        answers = list(engine.generate([Request(prompt, new) for prompt in prompts]))
        if not all(len(answer.tokens) == new for _, answer in answers):
            raise RuntimeError("an answer does not have the requested length")
        return time.perf_counter() - start

    return generate


def peer_model(raw: Mapping[str, Any], dtype: str) -> Any:
    """transformers' Llama with random weights, made on the GPU if there is one.

    Args:
      raw: the contents of config.json.
      dtype: of the weights.

    Raises:
      ImportError: torch or transformers is not installed.
    """
    import torch
    import transformers

    settings = transformers.LlamaConfig(**raw)
    settings.dtype = getattr(torch, dtype)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return transformers.LlamaForCausalLM._from_config(settings).eval()


def peer(model: Any, prompts: np.ndarray, **more: Any) -> Generate:
    """transformers' greedy `generate`.

    Args:
      model: from `peer_model`.
      prompts: token ids, [B, C].
      **more: passed to `generate`.
    """
    import torch

    tokens = torch.tensor(prompts, device=model.device)

    def generate(new: int) -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            answer = model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                **more,
            )
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        if answer.shape[1] != prompts.shape[1] + new:
            raise RuntimeError("an answer of the peer does not have the requested length")
        return time.perf_counter() - start

    return generate
