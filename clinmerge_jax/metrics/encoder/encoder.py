"""Loading of an encoder from a checkpoint, and the token states of many texts.

B batch, T tokens of a bucket, D hidden, L layers.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
import tokenizers
from absl import logging

from clinmerge_jax.checkpoint.folder import Checkpoint, open_checkpoint
from clinmerge_jax.checkpoint.formats.safetensors import DTYPES, TensorEntry, read_tensor
from clinmerge_jax.checkpoint.tokenizers.tokenizer import read_tokenizer
from clinmerge_jax.errors import BadInput
from clinmerge_jax.metrics.encoder.config import EncoderConfig
from clinmerge_jax.metrics.encoder.model import Params, encode, shapes

_PREFIXES = ("", "bert.", "roberta.")  # "" for a checkpoint of the encoder alone, the others for one with a head
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")  # stored by older checkpoints and not needed
_OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
_BATCH_TOKENS = 8192  # the tokens of a batch, including padding
_SHORTEST, _FEWEST = 32, 8  # the smallest buckets of tokens and rows; larger ones double


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
    """The first layers of a BERT or RoBERTa, with its tokenizer.

    Attributes:
      config: the architecture.
      layer: the number of layers; 0 for the embeddings alone.
      params: their parameters, in float32 on JAX's default device.
      backend: the tokenizer.
      specials: the ids of the special tokens that it adds before and after a text.
    """

    config: EncoderConfig
    layer: int
    params: Params
    backend: tokenizers.Tokenizer
    specials: tuple[int, int]

    def tokenize(self, texts: Sequence[str]) -> tuple[list[np.ndarray], int]:
        """Tokenize texts with special tokens, cut to the encoder's positions; also returns how many were cut.

        White space at both ends of a text is ignored. For RoBERTa a space is put before the first word, as before any
        other word.
        """
        lead = " " if self.config.model_type == "roberta" else ""
        stripped = [text.strip() for text in texts]
        encoded = self.backend.encode_batch([lead + text if text else "" for text in stripped])
        rows = [np.array(one.ids, np.int32) for one in encoded]
        most = self.config.max_tokens
        cut = [np.append(row[: most - 1], row[-1:]) if len(row) > most else row for row in rows]
        return cut, sum(len(row) > most for row in rows)

    def states(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs of layer `layer` for each row, [tokens of the row, D].

        Rows are padded to few shapes, so that few programs are compiled.

        Args:
          rows: the token ids from `tokenize`.
        """
        found: list[np.ndarray] = [np.empty(0)] * len(rows)
        by_length: dict[int, list[int]] = {}
        for index, row in enumerate(rows):
            by_length.setdefault(min(_bucket(len(row), _SHORTEST), self.config.max_tokens), []).append(index)
        for length, indices in sorted(by_length.items()):
            batch = min(_bucket(len(indices), _FEWEST), max(1, _BATCH_TOKENS // length))
            for start in range(0, len(indices), batch):
                chosen = indices[start : start + batch]
                tokens_BT = np.full((batch, length), self.config.pad_token_id, np.int32)
                lengths_B = np.ones(batch, np.int32)  # unused rows attend to one token, so states are finite
                for place, index in enumerate(chosen):
                    tokens_BT[place, : len(rows[index])] = rows[index]
                    lengths_B[place] = len(rows[index])
                states_BTD = jax.device_get(encode(self.params, *jax.device_put((tokens_BT, lengths_B)), self.config))
                for place, index in enumerate(chosen):
                    found[index] = states_BTD[place, : lengths_B[place]].copy()  # without the padding
        return found


def _bucket(count: int, least: int) -> int:
    """The smallest of `least`, 2 `least`, 4 `least` and so on that is not below `count`."""
    return least << max(0, (-(-count // least) - 1).bit_length())


def load_encoder(model: str, field: str, layer: int | None = None) -> Encoder:
    """Load the first layers of a BERT or RoBERTa from safetensors, in float32 on JAX's default device.

    Heads, a pooler and layers after the requested one are not read, which is logged.

    Args:
      model: its folder, or another location that `checkpoint.folder.resolve` accepts.
      field: the config field that gave the model, for messages.
      layer: the number of layers; None for all.

    Raises:
      BadInput: the model is not a BERT or RoBERTa, has fewer layers, its tensors are not those that config.json
        describes, or its tokenizer does not belong to it.
    """
    checkpoint = open_checkpoint(model, field, {**DTYPES, "I64": np.dtype(np.int64)})  # the buffers' dtype
    config = EncoderConfig.from_json(checkpoint.config, str(checkpoint.path / "config.json"))
    layers = config.num_hidden_layers if layer is None else layer
    if not 0 <= layers <= config.num_hidden_layers:
        raise BadInput(f"{field}: layer {layers} is requested, but {model} has {config.num_hidden_layers} layers")
    vocabulary = read_tokenizer(checkpoint.path, field)
    backend = vocabulary.backend
    backend.no_padding()
    backend.no_truncation()
    specials = backend.encode("").ids
    if len(specials) != 2:
        raise BadInput(
            f"{field}: the tokenizer of {model} puts {len(specials)} special tokens around a text, but BERT and RoBERTa"
            " have 2; fetch its tokenizer.json again"
        )
    if max(vocabulary.tokens) >= config.vocab_size:
        raise BadInput(
            f"{field}: the tokenizer of {model} has ids up to {max(vocabulary.tokens)}, its embedding"
            f" {config.vocab_size} rows; they belong to different models"
        )
    return Encoder(config, layers, _read_params(checkpoint, config, layers), backend, tuple(specials))


def _read_params(checkpoint: Checkpoint, config: EncoderConfig, layers: int) -> Params:
    parts = shapes(config)
    embeddings = {f"embeddings.{name}": shape for name, shape in parts["embeddings"].items()}
    expected = embeddings | {
        _layer_name(layer, name): shape
        for layer in range(config.num_hidden_layers)
        for name, shape in parts["layers"].items()
    }
    entries, others = _entries(checkpoint)
    for name, shape in expected.items():
        if name not in entries:
            raise BadInput(f"{checkpoint.path}: lacks tensor {name} that config.json requires; fetch it again")
        if entries[name].shape != shape:
            raise BadInput(
                f"{entries[name].file}: tensor {entries[name].name} has shape {list(entries[name].shape)}, but"
                f" config.json requires {list(shape)}; config and weights belong to different models"
            )
    extra = next((name for name in entries if name not in expected and name not in _BUFFERS), None)
    if extra is not None:
        raise BadInput(f"{checkpoint.path}: holds tensor {extra} that config.json does not expect; fetch it again")
    logging.info(
        "%s: %d of %d layers are read; %d tensors outside the encoder are not (heads, pooler)",
        checkpoint.path,
        layers,
        config.num_hidden_layers,
        others,
    )
    params = {
        "embeddings": {name: _wide(entries[f"embeddings.{name}"]) for name in parts["embeddings"]},
        "layers": {name: np.empty((layers, *shape), np.float32) for name, shape in parts["layers"].items()},
    }
    for name, stack in params["layers"].items():
        for layer in range(layers):
            stack[layer] = _wide(entries[_layer_name(layer, name)])
    return jax.device_put(params)


def _entries(checkpoint: Checkpoint) -> tuple[dict[str, TensorEntry], int]:
    """The encoder's tensors by their current names without a prefix, and the number of other tensors."""
    word = "embeddings.word_embeddings.weight"
    prefix = next((one for one in _PREFIXES if one + word in checkpoint.tensors), None)
    if prefix is None:
        raise BadInput(
            f"{checkpoint.path}: has no tensor {word}, with or without the prefix bert. or roberta.; give an encoder"
        )
    entries = {}
    for name, entry in checkpoint.tensors.items():
        own = name.removeprefix(prefix)
        if name.startswith(prefix) and own.startswith(("embeddings.", "encoder.")):
            for old, new in _OLD_NAMES.items():
                own = own.replace(old, new)
            entries[own] = entry
    return entries, len(checkpoint.tensors) - len(entries)


def _layer_name(layer: int, name: str) -> str:
    return f"encoder.layer.{layer}.{name}"


def _wide(entry: TensorEntry) -> np.ndarray:
    return read_tensor(entry).astype(np.float32)
