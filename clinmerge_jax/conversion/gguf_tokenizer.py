"""Builds the tokenizer files of a Hugging Face folder from a GGUF file's metadata.

transformers builds a tokenizer too, but only with torch. For a vocabulary of SmolLM2's kind it also splits digits
differently from the model's own tokenizer and from llama.cpp.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import gguf
from absl import logging
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from clinmerge_jax.checkpoint.files import GENERATION_FILE
from clinmerge_jax.checkpoint.tokenizers.tokenizer import SETTINGS_FILE, TOKENIZER_FILE, json_bytes
from clinmerge_jax.conversion import byte_fallback
from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.config import LlamaConfig

TEMPLATE_FILE = "chat_template.jinja"
_PREFIX = "tokenizer.ggml."
_TYPES = gguf.TokenType
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")  # llama.cpp ends an answer at any of these
_NAMED = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}

# How text is split before byte-level BPE, by tokenizer.ggml.pre; () is GPT-2's own rule, built into the library.
# As in llama.cpp's src/llama-vocab.cpp, which takes the patterns from the models' own tokenizers.
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_2 = _LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
_DIGITS = r"\p{N}"  # each digit on its own, then GPT-2's rule
_SPLITS = {
    **dict.fromkeys(("gpt-2", "phi-2"), ()),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r"), (_DIGITS,)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), (_LLAMA_3,)),
    "qwen2": (_QWEN_2,),
    "tekken": (_TEKKEN,),
}
# A word that is itself a token is not split; a text begins with BOS.
_WHOLE_WORDS = ("llama-bpe", "llama3", "llama-v3", "tekken")


def token_ids(metadata: Mapping[str, Any]) -> dict[str, int]:
    """bos_token_id, eos_token_id and pad_token_id of config.json, as far as the metadata state them."""
    named = {f"{field}_token_id": f"{_PREFIX}{key}_token_id" for field, key in
             (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))}  # fmt: skip
    return {field: metadata[key] for field, key in named.items() if key in metadata}


def tokenizer_files(metadata: Mapping[str, Any], path: pathlib.Path, llama: LlamaConfig) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json, generation_config.json and the chat template, by name.

    Args:
      metadata: the metadata of the file.
      path: the file, for messages.
      llama: the model.

    Raises:
      BadInput: the vocabulary is of an unknown kind, or does not fit the model.
    """
    vocabulary = _Vocabulary(metadata, path, llama.vocab_size)
    made = vocabulary.byte_level() if vocabulary.model == "gpt2" else vocabulary.sentencepiece()
    vocabulary.add_tokens(made)
    roles = {role: vocabulary.token(f"{name}_token_id") for role, name in _NAMED.items()}
    roles = {role: token for role, token in roles.items() if token is not None}
    bos, eos = roles.get("bos_token"), roles.get("eos_token")
    begins = vocabulary.flag("add_bos_token", vocabulary.begins) and bos is not None
    ends = vocabulary.flag("add_eos_token", False) and eos is not None
    sequence = [*([bos] if begins else []), "$A", *([eos] if ends else [])]
    if begins or ends:
        second = [*([f"{bos}:1"] if begins else []), "$B:1", *([f"{eos}:1"] if ends else [])]
        made.post_processor = processors.TemplateProcessing(
            single=" ".join(sequence),
            pair=" ".join([*sequence, *second]),
            special_tokens=[(token, made.token_to_id(token)) for token in {bos, eos} & {*sequence}],
        )
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **roles,
        "add_bos_token": begins,
        "add_eos_token": ends,
        "clean_up_tokenization_spaces": False,
        "model_max_length": llama.max_position_embeddings,
    }
    stops = list(dict.fromkeys(metadata[_PREFIX + key] for key in _ENDS if vocabulary.token(key) is not None))
    generation = {**token_ids(metadata), **({"eos_token_id": stops} if stops else {})}
    files = {
        TOKENIZER_FILE: made.to_str(pretty=True).encode() + b"\n",
        SETTINGS_FILE: json_bytes(settings),
        GENERATION_FILE: json_bytes(generation),
    }
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        files[TEMPLATE_FILE] = template.encode()
    others = metadata.get("tokenizer.chat_templates")
    if others:
        logging.info("%s: has further chat templates (%s), which are left out", path, ", ".join(map(str, others)))
    return files


class _Vocabulary:
    """The tokens of a GGUF file and their kinds, checked; scores and merges are checked when they are used."""

    def __init__(self, metadata: Mapping[str, Any], path: pathlib.Path, rows: int):
        self.path = path
        self._metadata = metadata
        self.model = self._text("model")
        if self.model not in ("gpt2", "llama"):
            raise self._unknown("model")
        self.tokens = self._list("tokens", str)
        count = len(self.tokens)
        if not count or count > rows:
            raise BadInput(f"{path}: has {count} tokens and an embedding of {rows} rows; it is damaged, fetch it again")
        twice = count - len(set(self.tokens))
        if twice:
            raise BadInput(f"{path}: lists {twice} tokens twice; {self._mend}")
        self.kinds = self._list("token_type", int, count)

    _mend = "give the model's own tokenizer with --config.tokenizer=FOLDER"

    def _text(self, key: str) -> str:
        value = self._metadata.get(_PREFIX + key)
        if not isinstance(value, str):
            raise BadInput(f"{self.path}: lacks {_PREFIX}{key}; {self._mend}")
        return value

    def _unknown(self, key: str) -> BadInput:
        return BadInput(f"{self.path}: {_PREFIX}{key} is {self._text(key)[:40]!r}, which is unknown here; {self._mend}")

    def _list(self, key: str, kind: type, count: int | None = None) -> list:
        values = self._metadata.get(_PREFIX + key)
        whole = isinstance(values, list) and all(type(value) is kind for value in values)
        if not whole or count not in (None, len(values)):
            raise BadInput(f"{self.path}: {_PREFIX}{key} is missing or does not fit the tokens; {self._mend}")
        return values

    @property
    def begins(self) -> bool:
        """Whether a text begins with BOS if the file does not say, by llama.cpp's defaults."""
        return self.model == "llama" or self._metadata.get(_PREFIX + "pre") in _WHOLE_WORDS

    def flag(self, key: str, default: bool) -> bool:
        return bool(self._metadata.get(_PREFIX + key, default))

    def token(self, key: str) -> str | None:
        """The token whose id this entry states; None without the entry."""
        index = self._metadata.get(_PREFIX + key)
        if index is None:
            return None
        if type(index) is not int or not 0 <= index < len(self.tokens):
            raise BadInput(f"{self.path}: {_PREFIX}{key} is {index!r}, which is not a token id; {self._mend}")
        return self.tokens[index]

    def _ids(self) -> dict[str, int]:
        """Id by token, without llama.cpp's placeholders for rows that have no token."""
        padding = {index for index, token in enumerate(self.tokens)
                   if self.kinds[index] == _TYPES.UNUSED and token == f"[PAD{index}]"}  # fmt: skip
        return {token: index for index, token in enumerate(self.tokens) if index not in padding}

    def _of_kind(self, *kinds: int) -> list[str]:
        return [token for token, kind in zip(self.tokens, self.kinds) if kind in kinds]

    def add_tokens(self, made: Tokenizer) -> None:
        """Adds the special and the user-defined tokens, which are matched in texts before anything else."""
        for kind, special in ((_TYPES.CONTROL, True), (_TYPES.USER_DEFINED, False)):
            tokens = [AddedToken(token, normalized=False, special=special) for token in self._of_kind(kind) if token]
            (made.add_special_tokens if special else made.add_tokens)(tokens)

    def byte_level(self) -> Tokenizer:
        """Builds byte-level BPE with merges, of GPT-2's and Llama 3's kind."""
        kind = self._text("pre")
        if kind not in _SPLITS:
            raise self._unknown("pre")
        ids = self._ids()
        made = Tokenizer(models.BPE(ids, self._merges(ids), ignore_merges=kind in _WHOLE_WORDS))
        own_rule = _SPLITS[kind] in ((), (_DIGITS,))
        splits = [pre_tokenizers.Split(Regex(split), behavior="isolated") for split in _SPLITS[kind]]
        splits.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=own_rule))
        made.pre_tokenizer = pre_tokenizers.Sequence(splits)
        made.decoder = decoders.ByteLevel()
        return made

    def sentencepiece(self) -> Tokenizer:
        """Builds SentencePiece BPE with scores, of Llama 2's kind."""
        ids = self._ids()
        if _PREFIX + "merges" in self._metadata:
            merges: Sequence[tuple[str, str]] = self._merges(ids)
        else:
            scores = self._list("scores", float, len(self.tokens))
            pieces = zip(self.tokens, scores, self.kinds)
            merges = byte_fallback.merge_rules([(text, score) for text, score, kind in pieces if kind == _TYPES.NORMAL])
        unknown = next(iter(self._of_kind(_TYPES.UNKNOWN)), None)
        return byte_fallback.build(
            ids, merges, unknown, [unknown] if unknown else [], space_first=self.flag("add_space_prefix", True)
        )

    def _merges(self, ids: Mapping[str, int]) -> list[tuple[str, str]]:
        merges = []
        for index, merge in enumerate(self._list("merges", str)):
            # The two halves are tokens; either may begin with a space in vocabularies that are not byte-level.
            halves = [(merge[:cut], merge[cut + 1 :]) for cut in range(1, len(merge)) if merge[cut] == " "]
            fitting = [pair for pair in halves if pair[0] in ids and pair[1] in ids and "".join(pair) in ids]
            if not fitting:
                raise BadInput(f"{self.path}: merge {index} does not join two tokens into a third; {self._mend}")
            merges.append(fitting[0])
        return merges
