"""How much a training step computes, and how much a device could."""

import jax

from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.parameters import count_inner_parameters

# Dense bfloat16 products a second, from the makers' data sheets, by the start of JAX's device kind.
_PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def step_flops(config: LlamaConfig, tokens: int, attended: int, *, frozen: bool, predicted: int | None = None) -> float:
    """Operations that forward and backward pass need; recomputation is not counted, nor what masks leave out.

    Each token takes two for every weight that multiplies it, and so does the gradient of what goes into the weight; the
    gradient of the weight itself takes two more, unless it is frozen, as under LoRA. Scores and weighted sums of
    attention are products too. (Kaplan et al. 2020, arXiv 2001.08361, section 2.1, with attention counted exactly.)

    Args:
      config: the architecture.
      tokens: of the batch, padding left out.
      attended: pairs of a token and one that it attends to, summed over the batch.
      frozen: whether the weights are not trained themselves.
      predicted: how many of the tokens are learned, which alone need the product with the vocabulary; None: all.
    """
    head = config.vocab_size * config.hidden_size
    weights = count_inner_parameters(config)
    pairs = config.num_hidden_layers * config.num_attention_heads * config.head_dim * attended
    multiplied = weights * tokens + head * (tokens if predicted is None else predicted)
    return (4 if frozen else 6) * multiplied + 12 * pairs


def peak_flops(device: jax.Device) -> float | None:
    """Dense bfloat16 operations a second of one device; None where we know none."""
    matching = [kind for kind in _PEAKS if device.device_kind.startswith(kind)]
    return _PEAKS[max(matching, key=len)] if matching else None
