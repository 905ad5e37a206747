"""A llama2.c legacy checkpoint and its tokenizer as a Source.

The checkpoint is llama2.c's version 0 export: a header of seven little-endian int32, then float32
tensors back to back, each kind stacked over the layers. The tokenizer is an int32 (the longest
piece in bytes), then for each token a float32 score, an int32 length and that many bytes. The format and
the encoding rule are llama2.c's (MIT licence); the code is not.

Shape letters: V vocabulary, D hidden size, F intermediate size, H query heads, K key/value heads,
C head size (D / H), S sequence length.
"""

import math
import pathlib
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer, processors

from clinmerge_jax import provenance
from clinmerge_jax.checkpoint.files import GENERATION_FILE
from clinmerge_jax.checkpoint.tokenizers.tokenizer import SETTINGS_FILE, TOKENIZER_FILE, json_bytes
from clinmerge_jax.conversion import byte_fallback
from clinmerge_jax.conversion.byte_fallback import SPACE_MARK
from clinmerge_jax.conversion.source import InputFiles, Source, SourceTensor, half_split
from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.config import LlamaConfig

HEADER_FORMAT = "<7i"
HEADER_BYTES = struct.calcsize(HEADER_FORMAT)
FLOAT_BYTES = 4
# First int32 of the versioned exports (1 and 2), which lay out their tensors differently.
VERSIONED_MAGIC = 0x616B3432

UNK, BOS, EOS = "<unk>", "<s>", "</s>"
SPECIAL_PIECES = (UNK, BOS, EOS)  # ids 0, 1 and 2
# llama2.c encodes a character outside the vocabulary as its UTF-8 bytes, byte b being token b + 3.
BYTE_PIECES = tuple(f"<0x{byte:02X}>" for byte in range(256))
FIRST_TEXT_ID = len(SPECIAL_PIECES) + len(BYTE_PIECES)

# Constants of llama2.c's run.c that the checkpoint does not carry.
RMS_NORM_EPS = 1e-5
ROPE_THETA = 10000.0


class Header(NamedTuple):
    """Sizes in a legacy checkpoint's header; `shared` is False if the file has a head of its own."""

    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    seq_len: int
    shared: bool

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads


class Block(NamedTuple):
    """`count` tensors of one shape, back to back in the file.

    `name` is the Hugging Face name with `{}` for the layer, or None for values that are skipped;
    `rotated` says whether RoPE rotates the rows.
    """

    name: str | None
    count: int
    shape: tuple[int, ...]
    rotated: bool = False


def read_header(path: pathlib.Path) -> Header:
    """Reads and checks the header of the checkpoint at `path`.

    Raises:
      BadInput: the file is shorter than a header, is a versioned export, or has sizes that
        no Llama model can have.
      OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        raw = file.read(HEADER_BYTES)
    if len(raw) < HEADER_BYTES:
        raise BadInput(f"{path}: {len(raw)} bytes, shorter than a header ({HEADER_BYTES}); give a llama2.c checkpoint")
    values = struct.unpack(HEADER_FORMAT, raw)
    if values[0] == VERSIONED_MAGIC:
        raise BadInput(f"{path}: a versioned llama2.c export; export it again with llama2.c's --version 0")
    dim, hidden_dim, n_layers, n_heads, n_kv_heads, signed_vocab, seq_len = values
    header = Header(dim, hidden_dim, n_layers, n_heads, n_kv_heads, abs(signed_vocab), seq_len, shared=signed_vocab > 0)
    for field, value in header._asdict().items():
        if field != "shared" and value <= 0:
            raise BadInput(f"{path}: header field {field} is {value}, must be positive; give a llama2.c checkpoint")
    if dim % (2 * n_heads):
        raise BadInput(
            f"{path}: hidden size {dim} does not divide into {n_heads} heads of even size; give a llama2.c checkpoint"
        )
    if n_heads % n_kv_heads:
        raise BadInput(
            f"{path}: {n_heads} query heads do not divide into {n_kv_heads} key/value heads; give a llama2.c checkpoint"
        )
    return header


def file_layout(header: Header) -> list[Block]:
    """Blocks of a legacy checkpoint with this header, in the order of the file."""
    layers, dim, hidden_dim = header.n_layers, header.dim, header.hidden_dim
    kv_dim = header.n_kv_heads * header.head_dim
    layer = "model.layers.{}."
    blocks = [
        Block("model.embed_tokens.weight", 1, (header.vocab_size, dim)),
        Block(layer + "input_layernorm.weight", layers, (dim,)),
        Block(layer + "self_attn.q_proj.weight", layers, (dim, dim), True),
        Block(layer + "self_attn.k_proj.weight", layers, (kv_dim, dim), True),
        Block(layer + "self_attn.v_proj.weight", layers, (kv_dim, dim)),
        Block(layer + "self_attn.o_proj.weight", layers, (dim, dim)),
        Block(layer + "post_attention_layernorm.weight", layers, (dim,)),
        Block(layer + "mlp.gate_proj.weight", layers, (hidden_dim, dim)),
        Block(layer + "mlp.down_proj.weight", layers, (dim, hidden_dim)),
        Block(layer + "mlp.up_proj.weight", layers, (hidden_dim, dim)),
        Block("model.norm.weight", 1, (dim,)),
        # Legacy cosine and sine tables, which every reader recomputes.
        Block(None, 2, (header.seq_len, header.head_dim // 2)),
    ]
    if not header.shared:
        blocks.append(Block("lm_head.weight", 1, (header.vocab_size, dim)))
    return blocks


def open_source(path: pathlib.Path, tokenizer: pathlib.Path) -> Source:
    """Opens a checkpoint and its tokenizer.

    Args:
      path: the checkpoint, such as stories260K.bin.
      tokenizer: llama2.c's tokenizer file, such as tok512.bin.

    Raises:
      BadInput: the header is invalid, a file is not as long as it says, or the two do not belong together.
    """
    header, blocks = _blocks(path)
    pieces = read_tokenizer(tokenizer, header.vocab_size)
    small_files = {
        TOKENIZER_FILE: build_tokenizer(pieces).to_str(pretty=True).encode(),
        SETTINGS_FILE: json_bytes(tokenizer_config(header)),
        GENERATION_FILE: json_bytes(generation_config()),
    }
    files = InputFiles([path])
    tensors: dict[str, SourceTensor] = {}
    offset = HEADER_BYTES
    for block in blocks:
        for index in range(block.count):
            if block.name is not None:
                name = block.name.format(index)
                tensors[name] = _tensor(name, block, header, files, path, offset)
            offset += FLOAT_BYTES * math.prod(block.shape)
    inputs = provenance.file_fingerprint(path.parent, [path], small_files)
    raw = model_config(header)
    llama = LlamaConfig.from_json(raw, str(path))
    return Source("llama2.c", path, raw, tensors, small_files, files, lambda: llama, inputs)


def _tensor(
    name: str, block: Block, header: Header, files: InputFiles, path: pathlib.Path, offset: int
) -> SourceTensor:
    columns = math.prod(block.shape[1:])

    def read(first: int, rows: int) -> np.ndarray:
        raw = files.read(path, offset + FLOAT_BYTES * first * columns, FLOAT_BYTES * rows * columns)
        values = raw.view("<f4").reshape(rows, columns)
        return half_split(values, header.head_dim) if block.rotated else values

    dtype = np.dtype(np.float32)
    return SourceTensor(name, block.shape, str(dtype), dtype, read, header.head_dim if block.rotated else 1)


def _blocks(path: pathlib.Path) -> tuple[Header, list[Block]]:
    """Reads the header, checks the file's length against it, and returns header and blocks.

    Raises:
      BadInput: the header is invalid, or the file has another length.
    """
    header = read_header(path)
    blocks = file_layout(header)
    expected = HEADER_BYTES + FLOAT_BYTES * sum(block.count * math.prod(block.shape) for block in blocks)
    actual = path.stat().st_size
    if actual != expected:
        problem = "truncated" if actual < expected else "too long"
        raise BadInput(f"{path}: {problem}: {actual} bytes, but its header requires {expected}; fetch it again")
    return header, blocks


def read_tokenizer(path: pathlib.Path, vocab_size: int) -> list[tuple[str, float]]:
    """Reads the tokenizer file at `path`.

    Returns:
      (piece, score) of each of the `vocab_size` tokens by id: the special and byte pieces under
      their sentencepiece names, and the others with U+2581 for a space.

    Raises:
      BadInput: the file is truncated, is not UTF-8, has another number of tokens, repeats a
        piece, or does not begin with the special and byte pieces.
      OSError: the file cannot be read.
    """
    raw = path.read_bytes()
    if len(raw) < 4:
        raise BadInput(f"{path}: truncated: {len(raw)} bytes, no tokenizer header; give the checkpoint's own")
    (max_bytes,) = struct.unpack_from("<i", raw)
    fixed_pieces = SPECIAL_PIECES + BYTE_PIECES
    pieces: list[tuple[str, float]] = []
    seen: set[str] = set()
    offset = 4
    while offset < len(raw):
        token = len(pieces)
        if offset + 8 > len(raw):
            raise BadInput(f"{path}: truncated in the score or length of token {token}; give the checkpoint's own")
        score, length = struct.unpack_from("<fi", raw, offset)
        offset += 8
        if not 0 < length <= max_bytes:
            raise BadInput(
                f"{path}: token {token} has {length} bytes, must be 1 to {max_bytes}; give the checkpoint's own"
            )
        if offset + length > len(raw):
            raise BadInput(f"{path}: truncated in the piece of token {token}; give the checkpoint's own")
        try:
            piece = raw[offset : offset + length].decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadInput(f"{path}: token {token} is not UTF-8: {error}; give the checkpoint's own") from error
        offset += length
        if token < FIRST_TEXT_ID:
            # llama2.c stores <s> and </s> with a newline on either side.
            if piece.strip("\n") != fixed_pieces[token]:
                raise BadInput(
                    f"{path}: token {token} is {piece!r}, must be {fixed_pieces[token]!r}; give the checkpoint's own"
                )
            piece = fixed_pieces[token]
        else:
            piece = piece.replace(" ", SPACE_MARK)
        if piece in seen:
            raise BadInput(f"{path}: token {token} repeats the piece {piece!r}; give the checkpoint's own")
        if math.isnan(score):
            raise BadInput(f"{path}: the score of token {token} is not a number; give the checkpoint's own")
        seen.add(piece)
        pieces.append((piece, score))
    if len(pieces) != vocab_size:
        raise BadInput(f"{path}: {len(pieces)} tokens for a vocabulary of {vocab_size}; give the checkpoint's own")
    if vocab_size < FIRST_TEXT_ID:
        raise BadInput(f"{path}: {vocab_size} tokens; the special and byte pieces alone are {FIRST_TEXT_ID}")
    return pieces


def build_tokenizer(pieces: Sequence[tuple[str, float]]) -> Tokenizer:
    """Builds the fast tokenizer, which begins a text with BOS."""
    ids = {piece: token for token, (piece, _) in enumerate(pieces)}
    merges = byte_fallback.merge_rules(pieces[FIRST_TEXT_ID:])
    tokenizer = byte_fallback.build(ids, merges, UNK, SPECIAL_PIECES)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS}:1 $B:1",
        special_tokens=[(BOS, SPECIAL_PIECES.index(BOS))],
    )
    return tokenizer


def model_config(header: Header) -> dict[str, Any]:
    """Contents of config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": SPECIAL_PIECES.index(BOS),
        "eos_token_id": SPECIAL_PIECES.index(EOS),
        "head_dim": header.head_dim,
        "hidden_act": "silu",
        "hidden_size": header.dim,
        "initializer_range": 0.02,
        "intermediate_size": header.hidden_dim,
        "max_position_embeddings": header.seq_len,
        "mlp_bias": False,
        "num_attention_heads": header.n_heads,
        "num_hidden_layers": header.n_layers,
        "num_key_value_heads": header.n_kv_heads,
        "rms_norm_eps": RMS_NORM_EPS,
        "rope_scaling": None,
        "rope_theta": ROPE_THETA,
        "tie_word_embeddings": header.shared,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": header.vocab_size,
    }


def generation_config() -> dict[str, Any]:
    """Contents of generation_config.json."""
    bos, eos = SPECIAL_PIECES.index(BOS), SPECIAL_PIECES.index(EOS)
    # llama2.c separates its training texts by <s> alone, so <s> ends a text as well as </s> does.
    return {"bos_token_id": bos, "eos_token_id": [bos, eos]}


def tokenizer_config(header: Header) -> dict[str, Any]:
    """Contents of tokenizer_config.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": UNK,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": header.seq_len,
    }
