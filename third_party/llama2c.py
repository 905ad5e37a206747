"""Converts a llama2.c legacy checkpoint and its tokenizer to a Hugging Face folder.

    python third_party/llama2c.py --checkpoint stories260K.bin --tokenizer tok512.bin --output DIR

The checkpoint is llama2.c's version 0 export: a header of seven little-endian int32, then float32
tensors back to back, each kind stacked over the layers. The tokenizer is an int32 (the longest
piece in bytes), then for each token a float32 score, an int32 length and that many bytes.

DIR receives config.json, generation_config.json, model.safetensors (float32), tokenizer.json and
tokenizer_config.json. It must not exist yet, or be empty. Any input error is one line on standard
error and exit status 2, and leaves no DIR behind. Peak memory is a small multiple of the
checkpoint's size: the format is meant for small models.

Shape letters: V vocabulary, D hidden size, F intermediate size, H query heads, K key/value heads,
C head size (D / H), S sequence length. `_VD` and the like are suffixes of array names.
"""

import argparse
import json
import math
import os
import shutil
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

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
SPACE_MARK = "\u2581"  # sentencepiece's visible space; llama2.c stores a plain space in its place

# Constants of llama2.c's run.c that the checkpoint does not carry.
RMS_NORM_EPS = 1e-5
ROPE_THETA = 10000.0


class ConversionError(ValueError):
    """An input that is not a llama2.c legacy file, or an output that cannot be written."""


class Header(NamedTuple):
    """Sizes in a legacy checkpoint's header; `shared` is False where the file has its own head."""

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
    `rope_heads` is the number of heads whose rows RoPE rotates, 0 where it rotates none.
    """

    name: str | None
    count: int
    shape: tuple[int, ...]
    rope_heads: int = 0


def read_header(path: Path) -> Header:
    """Reads and checks the header of the checkpoint at `path`.

    Raises:
      ConversionError: the file is shorter than a header, is a versioned export, or has sizes that
        no Llama model can have.
      OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        raw = file.read(HEADER_BYTES)
    if len(raw) < HEADER_BYTES:
        raise ConversionError(f"{path}: {len(raw)} bytes, shorter than the header of {HEADER_BYTES} bytes")
    values = struct.unpack(HEADER_FORMAT, raw)
    if values[0] == VERSIONED_MAGIC:
        raise ConversionError(f"{path}: a versioned llama2.c export; export it again with llama2.c's --version 0")
    dim, hidden_dim, n_layers, n_heads, n_kv_heads, signed_vocab, seq_len = values
    header = Header(dim, hidden_dim, n_layers, n_heads, n_kv_heads, abs(signed_vocab), seq_len, shared=signed_vocab > 0)
    for field, value in header._asdict().items():
        if field != "shared" and value <= 0:
            raise ConversionError(f"{path}: header field {field} is {value}, must be positive")
    if dim % (2 * n_heads):
        raise ConversionError(f"{path}: hidden size {dim} does not divide into {n_heads} heads of even size")
    if n_heads % n_kv_heads:
        raise ConversionError(f"{path}: {n_heads} query heads do not divide into {n_kv_heads} key/value heads")
    return header


def file_layout(header: Header) -> list[Block]:
    """Blocks of a legacy checkpoint with this header, in the order of the file."""
    layers, dim, hidden_dim = header.n_layers, header.dim, header.hidden_dim
    kv_dim = header.n_kv_heads * header.head_dim
    layer = "model.layers.{}."
    blocks = [
        Block("model.embed_tokens.weight", 1, (header.vocab_size, dim)),
        Block(layer + "input_layernorm.weight", layers, (dim,)),
        Block(layer + "self_attn.q_proj.weight", layers, (dim, dim), header.n_heads),
        Block(layer + "self_attn.k_proj.weight", layers, (kv_dim, dim), header.n_kv_heads),
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


def interleaved_to_half_split(weight_ND: np.ndarray, heads: int) -> np.ndarray:
    """Reorders the rows of a query or key projection [heads * C, D] for Hugging Face's RoPE.

    llama2.c rotates rows (2i, 2i + 1) of a head together, Hugging Face rows (i, i + C / 2). The
    same permutation on queries and keys leaves every attention score as it was.
    """
    rows, dim = weight_ND.shape
    pairs = weight_ND.reshape(heads, rows // heads // 2, 2, dim)
    return pairs.transpose(0, 2, 1, 3).reshape(rows, dim)


def _blocks_to_tensors(flat: np.ndarray, blocks: list[Block]) -> Iterator[tuple[str, np.ndarray]]:
    offset = 0
    for block in blocks:
        size = math.prod(block.shape)
        for index in range(block.count):
            if block.name is not None:
                tensor = flat[offset : offset + size].reshape(block.shape)
                if block.rope_heads:
                    tensor = interleaved_to_half_split(tensor, block.rope_heads)
                # safetensors writes the memory behind an array and ignores its strides.
                yield block.name.format(index), np.ascontiguousarray(tensor, np.float32)
            offset += size


def read_checkpoint(path: Path) -> tuple[Header, dict[str, np.ndarray]]:
    """Reads the checkpoint at `path`.

    Returns:
      The header, and float32 tensors by Hugging Face name, projections as [out, in]; without
      `lm_head.weight` where the classifier is shared with the embedding.

    Raises:
      ConversionError: the header is invalid, or the file is not as long as the header says.
      OSError: the file cannot be read.
    """
    header = read_header(path)
    blocks = file_layout(header)
    floats = sum(block.count * math.prod(block.shape) for block in blocks)
    expected, actual = HEADER_BYTES + FLOAT_BYTES * floats, path.stat().st_size
    if actual != expected:
        problem = "truncated" if actual < expected else "too long"
        raise ConversionError(f"{path}: {problem}: {actual} bytes, but its header asks for {expected}")
    flat = np.memmap(path, dtype="<f4", mode="r", offset=HEADER_BYTES, shape=(floats,))
    return header, dict(_blocks_to_tensors(flat, blocks))


def read_tokenizer(path: Path, vocab_size: int) -> list[tuple[str, float]]:
    """Reads the tokenizer file at `path`.

    Returns:
      (piece, score) of each of the `vocab_size` tokens by id: the special and byte pieces under
      their sentencepiece names, and the others with U+2581 for a space.

    Raises:
      ConversionError: the file is truncated, is not UTF-8, has another number of tokens, repeats a
        piece, or does not begin with the special and byte pieces.
      OSError: the file cannot be read.
    """
    raw = path.read_bytes()
    if len(raw) < 4:
        raise ConversionError(f"{path}: truncated: {len(raw)} bytes, no tokenizer header")
    (max_bytes,) = struct.unpack_from("<i", raw)
    fixed_pieces = SPECIAL_PIECES + BYTE_PIECES
    pieces: list[tuple[str, float]] = []
    seen: set[str] = set()
    offset = 4
    while offset < len(raw):
        token = len(pieces)
        if offset + 8 > len(raw):
            raise ConversionError(f"{path}: truncated in the score or length of token {token}")
        score, length = struct.unpack_from("<fi", raw, offset)
        offset += 8
        if not 0 < length <= max_bytes:
            raise ConversionError(f"{path}: token {token} has {length} bytes, must be 1 to {max_bytes}")
        if offset + length > len(raw):
            raise ConversionError(f"{path}: truncated in the piece of token {token}")
        try:
            piece = raw[offset : offset + length].decode("utf-8")
        except UnicodeDecodeError as error:
            raise ConversionError(f"{path}: token {token} is not UTF-8: {error}") from error
        offset += length
        if token < FIRST_TEXT_ID:
            # llama2.c stores <s> and </s> with a newline on either side.
            if piece.strip("\n") != fixed_pieces[token]:
                raise ConversionError(f"{path}: token {token} is {piece!r}, must be {fixed_pieces[token]!r}")
            piece = fixed_pieces[token]
        else:
            piece = piece.replace(" ", SPACE_MARK)
        if piece in seen:
            raise ConversionError(f"{path}: token {token} repeats the piece {piece!r}")
        if math.isnan(score):
            raise ConversionError(f"{path}: the score of token {token} is not a number")
        seen.add(piece)
        pieces.append((piece, score))
    if len(pieces) != vocab_size:
        raise ConversionError(f"{path}: {len(pieces)} tokens, but the checkpoint has a vocabulary of {vocab_size}")
    if vocab_size < FIRST_TEXT_ID:
        raise ConversionError(f"{path}: {vocab_size} tokens; the special and byte pieces alone are {FIRST_TEXT_ID}")
    return pieces


def merge_rules(pieces: Sequence[tuple[str, float]]) -> list[tuple[str, str]]:
    """Merges that make rank-ordered BPE do what llama2.c's best-score pair merging does.

    A merge is any split of a piece into two pieces; its rank is the merged piece's score, highest
    first, then its id. Only where two different splits of one piece meet in a text can the two
    differ: llama2.c takes the leftmost pair then, BPE the split listed first (shortest left half).
    """
    text_pieces = pieces[FIRST_TEXT_ID:]
    known = {piece for piece, _ in text_pieces}
    return [
        (piece[:cut], piece[cut:])
        # The sort is stable, so equal scores stay in the order of ids.
        for piece, _ in sorted(text_pieces, key=lambda entry: -entry[1])
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]


def build_tokenizer(pieces: Sequence[tuple[str, float]]) -> Tokenizer:
    """Builds the fast tokenizer: byte-fallback BPE with sentencepiece's dummy prefix space."""
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: token for token, (piece, _) in enumerate(pieces)},
            merges=merge_rules(pieces),
            unk_token=UNK,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in SPECIAL_PIECES])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE_MARK), normalizers.Replace(" ", SPACE_MARK)])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE_MARK, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS}:1 $B:1",
        special_tokens=[(BOS, SPECIAL_PIECES.index(BOS))],
    )
    return tokenizer


def model_config(header: Header) -> dict:
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


def generation_config() -> dict:
    """Contents of generation_config.json."""
    bos, eos = SPECIAL_PIECES.index(BOS), SPECIAL_PIECES.index(EOS)
    # llama2.c trains on texts that only <s> separates, so <s> ends a text as well as </s> does.
    return {"bos_token_id": bos, "eos_token_id": [bos, eos]}


def tokenizer_config(header: Header) -> dict:
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


def _write_json(path: Path, contents: dict) -> None:
    path.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")


def convert(checkpoint: Path, tokenizer: Path, output: Path) -> None:
    """Converts `checkpoint` and `tokenizer` to a Hugging Face folder at `output`.

    Raises:
      ConversionError: an input is invalid, or `output` exists and is not an empty folder.
      OSError: a file cannot be read or written.
    """
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ConversionError(f"{output}: exists already; remove it or choose another --output")
    header, tensors = read_checkpoint(checkpoint)
    fast_tokenizer = build_tokenizer(read_tokenizer(tokenizer, header.vocab_size))
    output = output.absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    # A sibling lies on the same file system, so the rename publishes all files at once or none.
    partial = output.with_name(f".{output.name}.partial-{os.getpid()}")
    partial.mkdir()
    try:
        _write_json(partial / "config.json", model_config(header))
        _write_json(partial / "generation_config.json", generation_config())
        _write_json(partial / "tokenizer_config.json", tokenizer_config(header))
        fast_tokenizer.save(str(partial / "tokenizer.json"))
        weights = partial / "model.safetensors"
        save_file(tensors, weights, metadata={"format": "pt"})
        # safetensors makes its file private to its owner; give it the mode of the other files.
        weights.chmod((partial / "config.json").stat().st_mode)
        partial.rename(output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="llama2.c legacy checkpoint")
    parser.add_argument("--tokenizer", type=Path, required=True, help="llama2.c tokenizer file")
    parser.add_argument("--output", type=Path, required=True, help="folder to create")
    args = parser.parse_args(argv)
    try:
        convert(args.checkpoint, args.tokenizer, args.output)
    except (ConversionError, OSError) as error:
        sys.stderr.write(f"{parser.prog}: error: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
