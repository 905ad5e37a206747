"""The architecture of a BERT or RoBERTa encoder, read from config.json alone."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from clinmerge_jax.errors import BadInput

MODEL_TYPES = ("bert", "roberta")

# Fields that change the forward pass, each with the only supported value, which is also its default.
_ONLY = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Everything the forward pass depends on. Hashable, so it can be a static argument of jit.

    Attributes:
      model_type: "bert" or "roberta"; they differ in how positions are numbered.
      pad_token_id: RoBERTa's first position is the one after it.
      layer_norm_eps: added to the variance.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    type_vocab_size: int
    pad_token_id: int
    layer_norm_eps: float

    @property
    def max_tokens(self) -> int:
        """The longest text in tokens, including special tokens."""
        return self.max_position_embeddings - (self.pad_token_id + 1) * (self.model_type == "roberta")

    @classmethod
    def from_json(cls, raw: Mapping[str, Any], source: str) -> "EncoderConfig":
        """Read the fields of a config.json; fields that it leaves out take transformers' defaults.

        Args:
          raw: the parsed config.json.
          source: the file's name, for error messages.

        Raises:
          BadInput: the model is neither a BERT nor a RoBERTa, or a field is missing, malformed, or asks for something
            that the published models do not have.
        """
        model_type = raw.get("model_type")
        if model_type not in MODEL_TYPES:
            raise BadInput(f"{source}: model_type is {model_type!r}; supported encoders are {', '.join(MODEL_TYPES)}")
        for field, only in _ONLY.items():
            if raw.get(field, only) != only:
                raise BadInput(f"{source}: {field} is {raw[field]!r}; only {only!r} is supported, give another model")

        def number(field: str, default: Any = None, kind: type = int, least: int = 1):
            value = raw.get(field, default)
            valid = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if not valid or value != kind(value) or (value < least if kind is int else value <= 0):
                expected = f"an integer from {least} on" if kind is int else "a positive number"
                raise BadInput(f"{source}: {field} is {value!r}; give {expected}")
            return kind(value)

        config = cls(
            model_type=model_type,
            vocab_size=number("vocab_size"),
            hidden_size=number("hidden_size"),
            intermediate_size=number("intermediate_size"),
            num_hidden_layers=number("num_hidden_layers"),
            num_attention_heads=number("num_attention_heads"),
            max_position_embeddings=number("max_position_embeddings", 512),
            type_vocab_size=number("type_vocab_size", 2),
            pad_token_id=number("pad_token_id", 1 if model_type == "roberta" else 0, least=0),
            layer_norm_eps=number("layer_norm_eps", 1e-12, kind=float),
        )
        if config.hidden_size % config.num_attention_heads:
            raise BadInput(
                f"{source}: hidden_size is {config.hidden_size}, not a multiple of num_attention_heads"
                f" ({config.num_attention_heads})"
            )
        if config.max_tokens < 3:
            raise BadInput(
                f"{source}: max_position_embeddings is {config.max_position_embeddings}, which leaves no room for text;"
                " give another model"
            )
        return config
