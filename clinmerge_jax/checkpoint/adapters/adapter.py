"""A LoRA adapter in the layout of PEFT (adapter_config.json, adapter_model.safetensors), added to a Checkpoint.

LoRA (Hu et al. 2021, arXiv 2106.09685) adds scaling * B A to a matrix of shape [out, in], with A of shape [r, in] and B
of shape [out, r]; scaling is alpha / r, or alpha / sqrt(r) where the adapter is rank-stabilised (arXiv 2312.03732). On
an embedding of shape [vocabulary, hidden] it adds the transpose of that product.

Legend: O out, I in, R rank.
"""

import dataclasses
import math
import os
import pathlib
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from clinmerge_jax.checkpoint.folder import Checkpoint, resolve
from clinmerge_jax.checkpoint.formats.safetensors import TensorEntry, parse_json, read_header, read_into, read_tensor
from clinmerge_jax.errors import BadInput

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
# Modules that an adapter may replace as a whole; these two may be tied to each other.
EMBEDDINGS = ("embed_tokens", "lm_head")

_KEY = re.compile(
    rf"{re.escape(PREFIX)}(?P<module>.+?)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_embedding_[AB]"
    r"|(?:base_layer\.)?weight)"
)
# The kind of factor, and whether it belongs to an embedding.
_FACTORS = {
    "lora_A.weight": ("A", False),
    "lora_B.weight": ("B", False),
    "lora_embedding_A": ("A", True),
    "lora_embedding_B": ("B", True),
}
# Initialisations that leave the base unchanged. Others subtract the initial product from the base, or quantise it.
_PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
# Fields that must be empty: what they enable is not a fixed product added to the base.
_FOREIGN_FIELDS = {
    "use_dora": "DoRA",
    "lora_bias": "trained biases",
    "fan_in_fan_out": "transposed weights",
    "layer_replication": "repeated layers",
    "trainable_token_indices": "single token rows",
    "target_parameters": "bare parameters as targets",
    "alora_invocation_tokens": "an adapter that acts from certain tokens on",
    "megatron_config": "weights split for Megatron",
    "arrow_config": "a router between adapters",
    "kasa_config": "KaSA",
    "monteclora_config": "random factors",
}
_BLOCK_ENTRIES = 1 << 15  # float64 values; two blocks of this size stay in a core's cache


@dataclasses.dataclass(frozen=True)
class _Change:
    """The change that an adapter makes to one tensor of a Checkpoint.

    Attributes:
      a_RI: the entry of A; None if the tensor is only replaced.
      b_OR: the entry of B; None if the tensor is only replaced.
      scaling: the factor of the product B A.
      embedding: whether the transpose of the product is added.
      replacement: the entry that replaces the tensor before the product is added; None for none.
    """

    a_RI: TensorEntry | None = None
    b_OR: TensorEntry | None = None
    scaling: float = 1.0
    embedding: bool = False
    replacement: TensorEntry | None = None

    def wanted(self) -> Iterator[tuple[TensorEntry, tuple[int, ...], tuple[int, ...]]]:
        """Yields the shapes that the tensor must have: the adapter's entry, the shape, and the axes it determines."""
        if self.replacement is not None:
            shape = self.replacement.shape
            yield self.replacement, shape, tuple(range(len(shape)))
        if self.a_RI is not None:
            shape_OI = (self.b_OR.shape[0], self.a_RI.shape[1])
            shape = shape_OI[::-1] if self.embedding else shape_OI
            yield self.a_RI, shape, (0 if self.embedding else 1,)
            yield self.b_OR, shape, (1 if self.embedding else 0,)


def last_part(name: str) -> str:
    """The last part of a module's or tensor's name: `embed_tokens` of `model.embed_tokens.weight`."""
    return name.removesuffix(".weight").rpartition(".")[2]


def is_tied(checkpoint: Checkpoint) -> bool:
    """Whether embedding and output share one tensor, so that neither can be changed alone."""
    tied = bool(checkpoint.config.get("tie_word_embeddings"))
    return tied or not any(last_part(name) == "lm_head" for name in checkpoint.tensors)


class Adapter:
    """A LoRA adapter, made by `open_adapter`; its weights are read when they are needed.

    Attributes:
      path: its folder.
      config: the content of adapter_config.json.
      label: its name in messages, such as a config field.
    """

    def __init__(
        self, path: pathlib.Path, config: Mapping[str, Any], changes: Mapping[str, _Change], label: str
    ) -> None:
        self.path = path
        self.config = config
        self.label = label
        self._changes = changes
        self._factors: tuple[str, np.ndarray, np.ndarray] | None = None  # of the last tensor used

    @property
    def files(self) -> list[pathlib.Path]:
        """The files that determine what the adapter adds."""
        return [self.path / CONFIG_FILE, self.path / WEIGHTS_FILE]

    @property
    def targets(self) -> list[str]:
        """The names of the tensors that the adapter changes, as in a Checkpoint."""
        return list(self._changes)

    def changes(self, name: str) -> bool:
        """Whether the adapter changes the tensor of this name."""
        return name in self._changes

    def check(self, checkpoint: Checkpoint) -> None:
        """Refuses a Checkpoint that this adapter does not belong to.

        Raises:
          BadInput: a tensor of the adapter has no counterpart, one of another shape, or one that is tied; the message
            names it.
        """
        tied = is_tied(checkpoint)
        for name, change in self._changes.items():
            for entry, shape, axes in change.wanted():
                place = f"{self.label}: {entry.file}: tensor {entry.name}"
                if tied and last_part(name) in EMBEDDINGS:
                    raise BadInput(
                        f"{place} changes only {name}, but {checkpoint.label} ({checkpoint.path}) ties embedding and"
                        " output (tie_word_embeddings); give an adapter that changes neither"
                    )
                if name not in checkpoint.tensors:
                    raise BadInput(
                        f"{place} belongs to {name}, which {checkpoint.label} ({checkpoint.path}) lacks; give the"
                        " adapter's own base model"
                    )
                there = checkpoint.tensors[name].shape
                if len(there) != len(shape) or any(there[axis] != shape[axis] for axis in axes):
                    raise BadInput(
                        f"{place} requires {name} of shape {list(shape)}, but it has {list(there)} in"
                        f" {checkpoint.label} ({checkpoint.path}); give the adapter's own base model"
                    )

    def apply_rows(self, name: str, first_row: int, piece: np.ndarray) -> np.ndarray:
        """Adds the adapter to some rows of a tensor.

        Each entry is summed over the rank in order, in float64, and rounded once. So the bits of a row depend neither
        on the piece that it is in nor on the machine.

        Args:
          name: a tensor of the Checkpoint that the adapter changes.
          first_row: the first row of the piece in the tensor.
          piece: rows of the base, of shape (rows, columns), in any floating dtype.

        Returns:
          float32 of shape (rows, columns).

        Raises:
          BadInput: the adapter holds values that are not finite.
          OSError: its file was changed after it was opened.
        """
        change = self._changes[name]
        rows, columns = piece.shape
        if change.replacement is not None:
            piece = _finite(_read_rows(change.replacement, first_row, rows), change.replacement)
        if change.a_RI is None:
            return piece.astype(np.float32)
        left_OR, right_RI = self._read_factors(name, change)
        result = np.empty((rows, columns), np.float32)
        step = max(1, _BLOCK_ENTRIES // columns)
        total, term = np.empty((2, min(step, rows), columns))
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            total_block, term_block = total[: stop - start], term[: stop - start]
            total_block[...] = 0.0
            rows_R = left_OR[first_row + start : first_row + stop]
            for rank in range(rows_R.shape[1]):
                np.multiply(rows_R[:, rank : rank + 1], right_RI[rank], out=term_block)
                total_block += term_block
            total_block *= change.scaling
            total_block += piece[start:stop].astype(np.float64)
            result[start:stop] = total_block
        return result

    def factors(self, name: str) -> tuple[np.ndarray, np.ndarray, float]:
        """A and B of one tensor as they are stored, and the scaling of their product.

        Raises:
          BadInput: the tensor is replaced or not changed, or is an embedding; or values are not finite.
        """
        change = self._changes.get(name)
        if change is None or change.a_RI is None or change.replacement is not None or change.embedding:
            raise BadInput(
                f"{self.label}: {self.path} does not hold exactly two factors for {name}; give another adapter"
            )
        a_RI, b_OR = (_finite(read_tensor(entry), entry) for entry in (change.a_RI, change.b_OR))
        return a_RI, b_OR, change.scaling

    def _read_factors(self, name: str, change: _Change) -> tuple[np.ndarray, np.ndarray]:
        """The factors whose product is added, float64 of shapes (O, R) and (R, I); the last tensor's are cached."""
        known = self._factors  # read once: another thread may replace it
        if known is None or known[0] != name:
            a_RI, b_OR = (_finite(read_tensor(entry), entry).astype(np.float64) for entry in (change.a_RI, change.b_OR))
            left_OR, right_RI = (a_RI.T, b_OR.T) if change.embedding else (b_OR, a_RI)
            known = self._factors = (name, np.ascontiguousarray(left_OR), np.ascontiguousarray(right_RI))
        return known[1:]


def split_location(location: str) -> tuple[str, str]:
    """Splits `model+adapter`, mergekit's spelling of a model with an adapter.

    If the whole text is a folder, it is a model alone. Otherwise the separator is the first "+" with folders on both
    sides; else the first with a folder before it; else the first with a folder after it; else the first "+".

    Args:
      location: a location in a config field or a recipe.

    Returns:
      The model and the adapter; "" for no adapter.
    """
    if _is_folder(location):
        return location, ""
    cuts = [(location[: found.start()], location[found.end() :]) for found in re.finditer(r"\+", location)]
    cuts = [cut for cut in cuts if all(cut)]
    if not cuts:
        return location, ""
    return max(cuts, key=lambda cut: (_is_folder(cut[0]), _is_folder(cut[1])))  # `max` returns the first of equals


def _is_folder(location: str) -> bool:
    return os.path.isdir(os.path.expanduser(location))


def open_adapter(location: str, field: str) -> Adapter:
    """Opens an adapter: reads its config and the header of its weights, and checks that it is plain LoRA.

    Args:
      location: any location that `folder.resolve` accepts.
      field: the config field that gave it, for messages.

    Raises:
      BadInput: something is missing or damaged, or the adapter does more than add a fixed product to a matrix; the
        message is one line.
    """
    path = resolve(location, field)
    config_path, weights = path / CONFIG_FILE, path / WEIGHTS_FILE
    if not config_path.is_file():
        raise BadInput(f"{field}: {path} has no {CONFIG_FILE}; give the folder of a LoRA adapter as PEFT saves it")
    config = parse_json(config_path.read_bytes(), config_path)
    if not isinstance(config, dict):
        raise BadInput(f"{config_path}: is not a JSON object; fetch it again")
    _check_config(config, config_path)
    if not weights.is_file():
        raise _no_weights(path, field)
    return Adapter(path, config, _read_changes(weights, config, config_path), field)


def _check_config(config: Mapping[str, Any], path: pathlib.Path) -> None:
    """Refuses an adapter that is not plain LoRA, and names the field."""
    mend = "give a plain LoRA adapter, or merge this one into its base with PEFT and give the result"
    if config.get("peft_type") != "LORA":
        raise BadInput(f"{path}: peft_type is {config.get('peft_type')!r}, and only LORA can be added; {mend}")
    for field, meaning in _FOREIGN_FIELDS.items():
        if config.get(field):
            raise BadInput(f"{path}: {field} is {config[field]!r} ({meaning}), which is not supported; {mend}")
    variants = [field for field in config if field.startswith("use_") and field != "use_rslora" and config[field]]
    if variants:
        raise BadInput(f"{path}: {variants[0]} is {config[variants[0]]!r}, an unsupported variant of LoRA; {mend}")
    if config.get("bias", "none") != "none":
        raise BadInput(f"{path}: bias is {config['bias']!r}; trained biases are not supported; {mend}")
    start = config.get("init_lora_weights")
    if not any(start is known or start == known for known in _PLAIN_STARTS):
        raise BadInput(
            f"{path}: init_lora_weights is {start!r}, which may change the base too; convert the adapter to plain"
            " LoRA when saving it (path_initial_model_for_weight_conversion), or merge it into its base with PEFT"
        )
    for module in config.get("modules_to_save") or ():
        if module not in EMBEDDINGS:
            raise BadInput(
                f"{path}: modules_to_save has {module!r}; only {' and '.join(EMBEDDINGS)} may be replaced; {mend}"
            )
    if not _is_rank(config.get("r")):
        raise BadInput(f"{path}: r is {config.get('r')!r}; give a positive integer")
    if not _is_number(config.get("lora_alpha")):
        raise BadInput(f"{path}: lora_alpha is {config.get('lora_alpha')!r}; give a number")
    for field, fits in (("rank_pattern", _is_rank), ("alpha_pattern", _is_number)):
        patterns = config.get(field) or {}
        if not isinstance(patterns, dict):
            raise BadInput(f"{path}: {field} is {patterns!r}; give an object of module names and numbers")
        for pattern, value in patterns.items():
            if not fits(value):
                raise BadInput(f"{path}: {field} has {value!r} for {pattern!r}; give a positive number")
            try:
                _pattern(pattern)
            except re.error as error:
                raise BadInput(
                    f"{path}: {field} has {pattern!r}, which is not a regular expression ({error}); correct it"
                ) from error


def _is_rank(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _no_weights(path: pathlib.Path, field: str) -> BadInput:
    pickle = path / "adapter_model.bin"
    if not pickle.is_file():
        return BadInput(f"{field}: {path} has no {WEIGHTS_FILE}; fetch the adapter again")
    code = (
        "import torch, safetensors.torch as s; s.save_file({k: v.contiguous() for k, v in"
        f" torch.load({str(pickle)!r}, weights_only=True).items()}}, {str(path / WEIGHTS_FILE)!r})"
    )
    return BadInput(
        f"{field}: {path} holds a pickle ({pickle.name}), which can run code when opened; convert it safely (with"
        f" torch): python -c {shlex.quote(code)}"
    )


def _pattern(text: str) -> re.Pattern:
    """Compiles a key of rank_pattern or alpha_pattern as PEFT does: it matches the last parts of a module, or all."""
    return re.compile(rf"(.*\.)?({text})$")


def _at(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The value of the first pattern that matches a module, else the default."""
    for pattern, value in (patterns or {}).items():
        if _pattern(pattern).match(module):
            return value
    return default


def _read_changes(path: pathlib.Path, config: Mapping[str, Any], config_path: pathlib.Path) -> dict[str, _Change]:
    """The adapter's changes by tensor name: factors in the order of the file, then tensors that are only replaced."""
    entries = read_header(path)
    factors: dict[str, dict[str, TensorEntry]] = {}
    embeddings: set[str] = set()
    replacements: dict[str, TensorEntry] = {}
    for key, entry in entries.items():
        found = _KEY.fullmatch(key)
        if found is None:
            raise BadInput(
                f"{path}: tensor {key} is not a supported LoRA factor; give a plain LoRA adapter, or merge this one"
                " into its base with PEFT and give the result"
            )
        module, part = found["module"], found["part"]
        if part in _FACTORS:
            kind, embedding = _FACTORS[part]
            if kind in factors.get(module, {}):
                raise BadInput(f"{path}: {module} has two factors {kind}; keep one pair")
            factors.setdefault(module, {})[kind] = entry
            if embedding:
                embeddings.add(module)
        elif last_part(module) not in EMBEDDINGS:
            raise BadInput(
                f"{path}: tensor {key} replaces {module}; only {' and '.join(EMBEDDINGS)} may be replaced: merge the"
                " adapter into its base with PEFT and give the result"
            )
        elif module in replacements:
            raise BadInput(f"{path}: {module} is replaced twice; keep one of the two tensors")
        else:
            replacements[module] = entry
    if not entries:
        raise BadInput(f"{path}: holds no tensors; fetch the adapter again")
    for module in config.get("modules_to_save") or ():
        if not any(last_part(name) == module for name in replacements):
            raise BadInput(f"{path}: lacks {module}, which modules_to_save of {config_path.name} names; fetch it again")
    changes: dict[str, _Change] = {}
    for module in dict.fromkeys((*factors, *replacements)):
        pair = _pair(path, module, factors[module], module in embeddings, config) if module in factors else {}
        changes[f"{module}.weight"] = _Change(**pair, replacement=replacements.get(module))
    return changes


def _pair(
    path: pathlib.Path, module: str, found: Mapping[str, TensorEntry], embedding: bool, config: Mapping[str, Any]
) -> dict[str, Any]:
    """Checks two factors against each other and the config, and returns their fields of a `_Change`."""
    for kind, other in ("AB", "BA"):
        if kind not in found:
            raise BadInput(f"{path}: tensor {found[other].name} lacks its factor {kind}; fetch the adapter again")
    a_RI, b_OR = found["A"], found["B"]
    rank = _at(config.get("rank_pattern"), module, config["r"])
    for entry, axis in ((a_RI, 0), (b_OR, 1)):
        if len(entry.shape) != 2 or 0 in entry.shape:
            raise BadInput(f"{path}: tensor {entry.name} has shape {list(entry.shape)}; a factor is a matrix")
        if entry.shape[axis] != rank:
            raise BadInput(
                f"{path}: tensor {entry.name} has shape {list(entry.shape)}, but {CONFIG_FILE} gives {module} the rank"
                f" {rank}; correct r or rank_pattern, or fetch both files again"
            )
    alpha = _at(config.get("alpha_pattern"), module, config["lora_alpha"])
    scaling = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return {"a_RI": a_RI, "b_OR": b_OR, "scaling": scaling, "embedding": embedding}


def _finite(values: np.ndarray, entry: TensorEntry) -> np.ndarray:
    if not np.isfinite(values).all():
        raise BadInput(f"{entry.file}: tensor {entry.name} holds values that are not finite; fetch the adapter again")
    return values


def _read_rows(entry: TensorEntry, first_row: int, rows: int) -> np.ndarray:
    """Reads some rows of a matrix into memory of their own."""
    columns = entry.shape[1]
    values = np.empty((rows, columns), entry.dtype)
    descriptor = os.open(entry.file, os.O_RDONLY)
    try:
        offset = entry.offset + first_row * columns * entry.dtype.itemsize
        read_into(descriptor, offset, memoryview(values.reshape(-1).view(np.uint8)), entry.file)
    finally:
        os.close(descriptor)
    return values
