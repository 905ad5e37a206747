"""The architecture of Llama and related families, read from config.json alone."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from absl import logging

from clinmerge_jax.errors import BadInput

ROPE_TYPES = ("default", "linear", "dynamic", "llama3")


@dataclasses.dataclass(frozen=True)
class Family:
    """The properties in which model families differ; defaults for fields missing in config.json are transformers'.

    Attributes:
      key_value_heads: the default number of key-value heads; 0 for as many as query heads.
      max_positions: the default context length.
      head_dim: the default head dimension; 0 for the hidden size divided by the number of heads.
      attention_bias: whether `attention_bias` in config.json is read; it gives all four attention projections biases.
      mlp_bias: whether `mlp_bias` in config.json is read; it gives the MLP projections biases.
      qkv_bias: whether queries, keys and values have biases regardless of config.json.
      qk_norm: whether queries and keys are normalised, each head separately.
      window: when there is a sliding window: "always" if `sliding_window` is not null, "asked" if also
        `use_sliding_window` is true, or "never".
    """

    key_value_heads: int = 0
    max_positions: int = 2048
    head_dim: int = 0
    attention_bias: bool = False
    mlp_bias: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    window: str = "never"


FAMILIES = {
    "llama": Family(attention_bias=True, mlp_bias=True),
    "mistral": Family(key_value_heads=8, max_positions=131072, window="always"),
    "qwen2": Family(key_value_heads=32, max_positions=32768, qkv_bias=True, window="asked"),
    "qwen3": Family(
        key_value_heads=32, max_positions=32768, head_dim=128, attention_bias=True, qk_norm=True, window="asked"
    ),
}
_WINDOW = 4096  # the default in every family that has a sliding window


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding (Su et al. 2021, arXiv 2104.09864) and its scaling.

    `theta` is the base of the frequencies. The scaling factors keep their config.json names.
    """

    rope_type: str = "default"
    theta: float = 10000.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 0


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Everything the forward pass depends on. Hashable, so it can be a static argument of jit.

    The fields have their config.json names. `max_position_embeddings` is the context length that runs may use. It is at
    most the sliding window, where a model has one, so the window never excludes a position. `qkv_bias` means biases on
    queries, keys and values only, `attention_bias` on these and on the output projection. `qk_norm` means Qwen3's norms
    of queries and keys.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope: RopeConfig = RopeConfig()
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    initializer_range: float = 0.02
    qkv_bias: bool = False
    qk_norm: bool = False

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], source: str) -> "LlamaConfig":
        """Reads the fields of a config.json in the spelling of transformers 4 or 5.

        Args:
          raw: the parsed config.json.
          source: the file's name for error messages.

        Raises:
          BadInput: a field is missing or malformed, or requests a feature that no family in FAMILIES supports.
        """
        return _Reader(raw, source).config()


class _Reader:
    """Reads typed fields from one config.json; error messages name the wrong field."""

    def __init__(self, raw: Mapping[str, Any], source: str):
        self.raw = raw
        self.source = source

    def fail(self, field: str, problem: str) -> BadInput:
        return BadInput(f"{self.source}: {field} {problem}")

    def number(self, raw: Mapping[str, Any], field: str, default: Any = None, kind: type = int):
        value = raw.get(field)
        if value is None:
            value = default
        if value is None:
            raise self.fail(field, "is missing; add it to config.json")
        valid = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf
        if not valid or (kind is int and value != int(value)):
            raise self.fail(field, f"is {value!r}; give a positive {'integer' if kind is int else 'number'}")
        return kind(value)

    def flag(self, field: str) -> bool:
        value = self.raw.get(field, False)
        if not isinstance(value, bool):
            raise self.fail(field, f"is {value!r}; give true or false")
        return value

    def config(self) -> LlamaConfig:
        raw = self.raw
        model_type = raw.get("model_type")
        family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
        if family is None:
            raise self.fail("model_type", f"is {model_type!r}; supported are {', '.join(FAMILIES)}")
        if raw.get("hidden_act", "silu") != "silu":
            raise self.fail("hidden_act", f"is {raw['hidden_act']!r}; only 'silu' (SwiGLU) is supported")
        hidden = self.number(raw, "hidden_size")
        heads = self.number(raw, "num_attention_heads")
        kv_heads = self.number(raw, "num_key_value_heads", default=family.key_value_heads or heads)
        if heads % kv_heads:
            raise self.fail("num_key_value_heads", f"is {kv_heads}; it must divide num_attention_heads ({heads})")
        if raw.get("head_dim") is None and not family.head_dim and hidden % heads:
            raise self.fail(
                "hidden_size", f"is {hidden}, not a multiple of num_attention_heads ({heads}); add head_dim"
            )
        head_dim = self.number(raw, "head_dim", default=family.head_dim or hidden // heads)
        if head_dim % 2:
            raise self.fail("head_dim", f"is {head_dim}; rotary embeddings require an even number")
        max_positions = self.number(raw, "max_position_embeddings", default=family.max_positions)
        rope = self.rope(max_positions, head_dim)
        window = self.window(family, max_positions)
        if window < max_positions and rope.rope_type == "dynamic":
            raise self.fail("sliding_window", "comes with dynamic RoPE scaling; set one of the two to null")
        return LlamaConfig(
            vocab_size=self.number(raw, "vocab_size"),
            hidden_size=hidden,
            intermediate_size=self.number(raw, "intermediate_size"),
            num_hidden_layers=self.number(raw, "num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            rms_norm_eps=self.number(raw, "rms_norm_eps", kind=float, default=1e-6),
            max_position_embeddings=window,
            rope=rope,
            tie_word_embeddings=self.flag("tie_word_embeddings"),
            attention_bias=family.attention_bias and self.flag("attention_bias"),
            mlp_bias=family.mlp_bias and self.flag("mlp_bias"),
            initializer_range=self.number(raw, "initializer_range", kind=float, default=0.02),
            qkv_bias=family.qkv_bias,
            qk_norm=family.qk_norm,
        )

    def window(self, family: Family, max_positions: int) -> int:
        """Returns the context length that a run may use: at most the sliding window."""
        asked = family.window == "always" or (family.window == "asked" and self.flag("use_sliding_window"))
        if not asked or self.raw.get("sliding_window", _WINDOW) is None:
            return max_positions
        window = self.number(self.raw, "sliding_window", default=_WINDOW)
        if window < max_positions:
            logging.info("%s: runs use %d positions, the sliding window", self.source, window)
        return min(window, max_positions)

    def rope_object(self, field: str) -> dict[str, Any]:
        """Returns rope_parameters or rope_scaling, empty if missing, with the older key `type` renamed to rope_type."""
        value = self.raw.get(field) or {}
        if not isinstance(value, dict):
            raise self.fail(field, f"is {value!r}; give an object with rope_type")
        renamed = {"rope_type": value["type"], **value} if "type" in value else dict(value)
        renamed.pop("type", None)
        return renamed

    def rope(self, max_positions: int, head_dim: int) -> RopeConfig:
        new, old = self.rope_object("rope_parameters"), self.rope_object("rope_scaling")
        if new and any(new.get(key) != value for key, value in old.items()):
            raise self.fail("rope_scaling", "disagrees with rope_parameters; keep one of the two")
        field, scaling = ("rope_parameters", new) if new else ("rope_scaling", old)
        rope_type = scaling.get("rope_type", "default")
        if rope_type not in ROPE_TYPES:
            raise self.fail(f"{field}.rope_type", f"is {rope_type!r}; supported are {', '.join(ROPE_TYPES)}")
        if any(holder.get("partial_rotary_factor") not in (None, 1) for holder in (scaling, self.raw)):
            raise self.fail("partial_rotary_factor", "is not 1; Llama rotates whole heads")
        theta = self.number(scaling, "rope_theta", default=self.raw.get("rope_theta", 10000.0), kind=float)
        if self.raw.get("rope_theta") not in (None, theta):
            raise self.fail("rope_theta", f"disagrees with {field}.rope_theta ({theta:g}); keep one of the two")
        if rope_type == "default":
            return RopeConfig(theta=theta)
        if rope_type == "dynamic" and head_dim == 2:
            raise self.fail("head_dim", "is 2, which dynamic RoPE scaling cannot stretch; use 4 or more")
        rope = RopeConfig(rope_type=rope_type, theta=theta, factor=self.number(scaling, "factor", kind=float))
        if rope_type != "llama3":
            return rope
        low = self.number(scaling, "low_freq_factor", kind=float)
        high = self.number(scaling, "high_freq_factor", kind=float)
        if not high > low:
            raise self.fail(f"{field}.high_freq_factor", f"is {high:g}; it must be over low_freq_factor ({low:g})")
        # As in transformers: the top-level value takes precedence, and the default is the whole context.
        holder = self.raw if self.raw.get("original_max_position_embeddings") else scaling
        original = self.number(holder, "original_max_position_embeddings", default=max_positions)
        return dataclasses.replace(
            rope, low_freq_factor=low, high_freq_factor=high, original_max_position_embeddings=original
        )
