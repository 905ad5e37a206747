"""Count the floating-point operations of a training step, and look up the peak rate of a device."""

import jax

from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.parameters import count_inner_parameters

# Peak dense bfloat16 operations per second, from the vendors' data sheets, by prefix of JAX's device kind.
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
    """Operations of the forward and backward pass, excluding recomputation and masked positions.

    For each token, each weight costs two operations in the forward pass, two for the gradient of its input, and two for
    its own gradient unless it is frozen, as with LoRA. The scores and weighted sums of attention are counted too.
    (Kaplan et al. 2020, arXiv 2001.08361, section 2.1, with attention counted exactly.)

    Args:
      config: the architecture.
      tokens: number of tokens of the batch, without padding.
      attended: number of pairs of a token and a token that it attends to, summed over the batch.
      frozen: whether the weights are frozen.
      predicted: number of target tokens; only these need the product with the vocabulary. None: all tokens.
    """
    head = config.vocab_size * config.hidden_size
    weights = count_inner_parameters(config)
    pairs = config.num_hidden_layers * config.num_attention_heads * config.head_dim * attended
    multiplied = weights * tokens + head * (tokens if predicted is None else predicted)
    return (4 if frozen else 6) * multiplied + 12 * pairs


def peak_flops(device: jax.Device) -> float | None:
    """Peak dense bfloat16 operations per second of one device; None if unknown."""
    matching = [kind for kind in _PEAKS if device.device_kind.startswith(kind)]
    return _PEAKS[max(matching, key=len)] if matching else None
