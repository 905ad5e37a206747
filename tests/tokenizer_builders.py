"""Tokenizers of Llama 3's and Llama 2's kind, trained on a few sentences, and checkpoints that have them."""

import functools
import io
import json
import pathlib
import random
import tempfile
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import support
import tokenizers
import transformers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from clinmerge_jax.checkpoint.folder import Checkpoint, open_checkpoint
from clinmerge_jax.checkpoint.tokenizers.embedding import has_vocabulary_rows

BOS, HEADER, HEADER_END, EOT = "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
LLAMA_3_SPECIALS = (BOS, HEADER, HEADER_END, EOT, *(f"<|reserved_special_token_{i}|>" for i in range(6)))
LLAMA_2_SPECIALS = ("<unk>", "<s>", "</s>")

_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
_CORPUS = (
    "The patient was admitted with fever, cough and shortness of breath for 3 days.",
    "Blood pressure was 120/80 mmHg and the heart rate 92 per minute on admission.",
    "She takes metformin 500 mg twice daily; no known allergies were reported.",
    "What is the capital of the country, and how far is the sea from there?",
    "He didn't want to go there, but they'll come back with the others on Monday.",
    "Please write a short letter to my teacher about the weather and the garden.",
)
TEXTS = (
    *_CORPUS,
    "Patients who weren't seen: 4567 of 12345 (37%).",
    "  two spaces, a tab\tand\n\nlines ",
    "Fieber über 39 °C, naïve 日本語 and 🙂.",
    "",
    "x",
)


@functools.cache
def llama_3_core(seed: int) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Words in order and merges of a byte-level BPE; other seeds have other texts, and so other merges."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = _llama_3_split()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator([" ".join(_CORPUS[:3] if seed else _CORPUS)] * 2, trainer)
    return _core_of(trained)


@functools.cache
def _llama_2_core() -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Words and merges of a sentencepiece BPE with byte fallback, trained here and converted by transformers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its bindings' types name no module
        import sentencepiece
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_CORPUS),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        hard_vocab_limit=False,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        minloglevel=2,
        **{f"{name}_id": index for index, name in enumerate(("unk", "bos", "eos"))},
    )
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "tokenizer.model").write_bytes(model.getvalue())
        (pathlib.Path(folder) / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
        return _core_of(transformers.AutoTokenizer.from_pretrained(folder).backend_tokenizer)


def _core_of(trained):
    model = json.loads(trained.to_str())["model"]
    words = tuple(sorted(model["vocab"], key=model["vocab"].get))
    return words, tuple((left, right) for left, right in model["merges"])


def _llama_3_split():
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _ids(words, inside, shuffle):
    """Ids of the model's words, with added tokens that lie among them, all shuffled."""
    words = [*words, *inside]
    if shuffle is not None:
        random.Random(shuffle).shuffle(words)
    return {word: index for index, word in enumerate(words)}


def llama_3(
    added: Sequence[str | AddedToken] = (),
    specials: Sequence[str] = LLAMA_3_SPECIALS,
    inside: Sequence[str] = (),
    shuffle: int | None = None,
    core: int = 0,
) -> tokenizers.Tokenizer:
    """A byte-level BPE of Llama 3's kind.

    Args:
      added: tokens after the special ones, as text (not special) or AddedToken.
      specials: special tokens after the BPE's words.
      inside: further added tokens whose ids lie among the BPE's words.
      shuffle: seed of the order of the BPE's words; None keeps it.
      core: which words and merges.
    """
    words, merges = llama_3_core(core)
    made = tokenizers.Tokenizer(models.BPE(_ids(words, inside, shuffle), list(merges), ignore_merges=True))
    made.pre_tokenizer = _llama_3_split()
    made.decoder = decoders.ByteLevel()
    _add(made, specials, added, inside)
    if BOS in specials:
        made.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, made.token_to_id(BOS))]
        )
    return made


def llama_2(
    added: Sequence[str | AddedToken] = (),
    inside: Sequence[str] = (),
    shuffle: int | None = None,
    metaspace: bool = False,
) -> tokenizers.Tokenizer:
    """A sentencepiece BPE of Llama 2's kind, as converted to tokenizer.json.

    Args:
      added: tokens after the model's words.
      inside: further added tokens whose ids lie among the model's words.
      shuffle: seed of the order of the model's words; None keeps it.
      metaspace: with the newer Metaspace pre-tokenizer in place of the older normalizer.
    """
    words, merges = _llama_2_core()
    model = models.BPE(_ids(words, inside, shuffle), list(merges), byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    made = tokenizers.Tokenizer(model)
    if metaspace:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    _add(made, LLAMA_2_SPECIALS, added, inside)
    return made


def _add(made, specials, added, inside):
    made.add_special_tokens([AddedToken(one, normalized=False, special=True) for one in specials])
    for one in (*added, *inside):
        token = one if isinstance(one, AddedToken) else AddedToken(one, normalized=False)
        (made.add_special_tokens if token.special else made.add_tokens)([token])


def write_model(
    folder: pathlib.Path,
    name: str,
    tokenizer: tokenizers.Tokenizer | None,
    extra: int = 0,
    zeros: Collection[str] = (),
    same: Collection[str] = (),
    settings: Mapping[str, Any] | None = None,
    rows: int | None = None,
    tied: bool = False,
    **config: Any,
) -> Checkpoint:
    """Writes a checkpoint with a tokenizer and opens it.

    Args:
      folder: where to, under its name.
      name: of the model; its weights follow from it.
      tokenizer: its tokenizer; None for none.
      extra: rows of the embedding beyond the tokens.
      zeros: tokens whose rows are zeros.
      same: tokens whose rows are equal.
      settings: fields of tokenizer_config.json.
      rows: of the embedding, where they do not follow from the tokens.
      tied: whether the head is the embedding.
      **config: fields of config.json.
    """
    size = rows if rows is not None else tokenizer.get_vocab_size(True) + extra
    fields = {**support.TINY, "vocab_size": size, "tie_word_embeddings": tied}
    seed = sum(map(ord, name))
    tensors = support.llama_tensors(fields, seed, np.float32)
    for tensor, values in tensors.items():
        if has_vocabulary_rows(tensor):
            values[[int(tokenizer.token_to_id(token)) for token in zeros]] = 0
            values[[int(tokenizer.token_to_id(token)) for token in same]] = 0.5
    path = support.write_llama(
        folder / name, seed, np.float32, tensors=tensors, vocab_size=size, tie_word_embeddings=tied, **config
    )
    if tokenizer is not None:
        tokenizer.save(str(path / "tokenizer.json"))
        fields = {"tokenizer_class": "PreTrainedTokenizerFast", **(settings or {})}
        (path / "tokenizer_config.json").write_text(json.dumps(fields))
    return open_checkpoint(str(path), f"config.{name}")


def tokens_by_id(tokenizer: tokenizers.Tokenizer) -> list[str]:
    """All tokens in the order of their ids."""
    ids = tokenizer.get_vocab(True)
    return sorted(ids, key=ids.get)
