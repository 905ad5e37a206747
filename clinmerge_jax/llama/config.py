"""Llama's architecture as read from config.json, and from nothing else."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from clinmerge_jax.errors import BadInput

ROPE_TYPES = ("default", "linear", "dynamic", "llama3")


@dataclasses.dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding (Su et al. 2021, arXiv 2104.09864) and its scaling.

    `theta` is the base of the frequencies; the scaling factors keep the names of config.json.
    """

    rope_type: str = "default"
    theta: float = 10000.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 0


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Everything the forward pass depends on. Hashable, so it can be a static argument of jit."""

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

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], source: str) -> "LlamaConfig":
        """Reads the fields of a config.json in the spelling of transformers 4 or 5.

        Args:
          raw: the parsed config.json.
          source: the file's name for error messages.

        Raises:
          BadInput: a field is missing, malformed, or asks for something Llama does not have.
        """
        return _Reader(raw, source).config()


class _Reader:
    """Reads typed fields out of one config.json and names the field that is wrong."""

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
            raise self.fail(field, "is missing; a Llama config.json states it")
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
        if raw.get("model_type") != "llama":
            raise self.fail("model_type", f"is {raw.get('model_type')!r}; only 'llama' has a forward pass here")
        if raw.get("hidden_act", "silu") != "silu":
            raise self.fail("hidden_act", f"is {raw['hidden_act']!r}; Llama's MLP is SwiGLU, which is 'silu'")
        hidden = self.number(raw, "hidden_size")
        heads = self.number(raw, "num_attention_heads")
        kv_heads = self.number(raw, "num_key_value_heads", default=heads)
        if heads % kv_heads:
            raise self.fail("num_key_value_heads", f"is {kv_heads}; it must divide num_attention_heads ({heads})")
        if raw.get("head_dim") is None and hidden % heads:
            raise self.fail("hidden_size", f"is {hidden}, no multiple of num_attention_heads ({heads}); state head_dim")
        head_dim = self.number(raw, "head_dim", default=hidden // heads)
        if head_dim % 2:
            raise self.fail("head_dim", f"is {head_dim}; rotary embeddings need an even one")
        max_positions = self.number(raw, "max_position_embeddings", default=2048)
        return LlamaConfig(
            vocab_size=self.number(raw, "vocab_size"),
            hidden_size=hidden,
            intermediate_size=self.number(raw, "intermediate_size"),
            num_hidden_layers=self.number(raw, "num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            rms_norm_eps=self.number(raw, "rms_norm_eps", kind=float, default=1e-6),
            max_position_embeddings=max_positions,
            rope=self.rope(max_positions, head_dim),
            tie_word_embeddings=self.flag("tie_word_embeddings"),
            attention_bias=self.flag("attention_bias"),
            mlp_bias=self.flag("mlp_bias"),
            initializer_range=self.number(raw, "initializer_range", kind=float, default=0.02),
        )

    def rope_object(self, field: str) -> dict[str, Any]:
        """rope_parameters or rope_scaling, empty where it is not given, its older key `type` called rope_type."""
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
        # transformers lets the top level decide, and falls back on the whole context.
        holder = self.raw if self.raw.get("original_max_position_embeddings") else scaling
        original = self.number(holder, "original_max_position_embeddings", default=max_positions)
        return dataclasses.replace(
            rope, low_freq_factor=low, high_freq_factor=high, original_max_position_embeddings=original
        )
