"""The tokenizer of a folder: its tokens and their ids, its files, and how transformers loads it."""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from absl import logging

from clinmerge_jax.checkpoint.files import CARRIED_FILES, GENERATION_FILE, LICENCE_FILES
from clinmerge_jax.checkpoint.folder import Checkpoint
from clinmerge_jax.checkpoint.formats.safetensors import parse_json
from clinmerge_jax.checkpoint.tokenizers.chat_template import limit_chat_template
from clinmerge_jax.checkpoint.tokenizers.embedding import vocabulary_rows, vocabulary_tensors
from clinmerge_jax.errors import BadInput

TOKENIZER_FILE = "tokenizer.json"
SETTINGS_FILE = "tokenizer_config.json"
ADDED_FILE = "added_tokens.json"
OLDER_FILES = ("tokenizer.model", "vocab.json", "spiece.model")  # transformers can convert these to a tokenizer.json
TOKEN_FLAGS = ("lstrip", "rstrip", "single_word", "normalized")  # these decide which text an added token matches

_SHOWN = 10  # tokens that a message names


@dataclasses.dataclass(frozen=True, eq=False)
class TokenizerVocabulary:
    """The tokens of one tokenizer.

    Attributes:
      path: its folder.
      label: its name in messages.
      ids: id by token, including added tokens.
      added: the added tokens by text, including special ones, in the order of their ids; they are matched in the text
        before the tokenizer's model runs.
      special: the added tokens that are marked special.
      rows: the rows of the model's embedding; 0 if there is only a tokenizer.
      backend: the tokenizer itself.
      content: the bytes of tokenizer.json; b"" if the tokenizer had to be converted.
    """

    path: pathlib.Path
    label: str
    ids: Mapping[str, int]
    added: Mapping[str, tokenizers.AddedToken]
    special: frozenset[str]
    rows: int
    backend: tokenizers.Tokenizer
    content: bytes

    @functools.cached_property
    def tokens(self) -> dict[int, str]:
        """Token by id, in the order of the ids."""
        return {index: token for token, index in sorted(self.ids.items(), key=lambda item: item[1])}

    @functools.cached_property
    def definition(self) -> dict[str, Any]:
        """The content of tokenizer.json, as the installed library writes it."""
        return json.loads(self.backend.to_str())

    def row(self, token: str) -> int:
        """The token's row in the model's embedding; -1 if it is unknown or its id lies past the embedding."""
        index = self.ids.get(token, -1)
        return index if index < self.rows else -1


def has_tokenizer(path: pathlib.Path, *, convert: bool = True) -> bool:
    """Whether a folder has a tokenizer.

    Args:
      path: the folder.
      convert: whether a tokenizer counts that must be converted from older files.
    """
    return (path / TOKENIZER_FILE).is_file() or (convert and any((path / name).is_file() for name in OLDER_FILES))


def read_vocabulary(checkpoint: Checkpoint, field: str) -> TokenizerVocabulary:
    """Reads the tokenizer of a Checkpoint: its tokenizer.json, or what transformers converts from older files.

    Args:
      checkpoint: a model.
      field: the config field that gave it, for messages.

    Raises:
      BadInput: there is no tokenizer, it cannot be loaded or converted, or embedding and head differ in rows.
    """
    return read_tokenizer(checkpoint.path, field, vocabulary_rows(checkpoint))


def read_again(one: TokenizerVocabulary, checkpoint: Checkpoint) -> TokenizerVocabulary | None:
    """Reuses a parsed tokenizer for a Checkpoint that has the same one, because parsing takes a second.

    Args:
      one: a tokenizer that was read before.
      checkpoint: a model.

    Returns:
      The same with the Checkpoint's own path, label and rows; None if the Checkpoint has another tokenizer.

    Raises:
      BadInput: a file that lists tokens is damaged, or embedding and head differ in rows.
    """
    file = checkpoint.path / TOKENIZER_FILE
    same = one.content != b"" and file.is_file() and one.content == file.read_bytes()
    if not same or _listed_beside(checkpoint.path) != _listed_beside(one.path):
        return None
    return dataclasses.replace(one, path=checkpoint.path, label=checkpoint.label, rows=vocabulary_rows(checkpoint))


def read_tokenizer(path: pathlib.Path, field: str, rows: int = 0) -> TokenizerVocabulary:
    """Reads the tokenizer of a folder: its tokenizer.json, or what transformers converts from older files.

    Args:
      path: the folder.
      field: the config field that gave it, for messages.
      rows: the rows of the model's embedding; 0 if there is only a tokenizer.

    Raises:
      BadInput: there is no tokenizer, or it cannot be loaded or converted.
    """
    file = path / TOKENIZER_FILE
    if file.is_file():
        content = file.read_bytes()
        try:
            backend = tokenizers.Tokenizer.from_str(content.decode())
        except Exception as error:  # the library raises bare Exception
            raise BadInput(f"{field}: {file} does not load ({short(error)}); fetch it again") from error
        _add_listed_tokens(path, backend)
    else:
        content = b""
        older = next((name for name in OLDER_FILES if (path / name).is_file()), None)
        if older is None:
            raise BadInput(f"{field}: {path} has no {TOKENIZER_FILE}; add the model's tokenizer files")
        try:
            backend = load_tokenizer(path, field).backend_tokenizer
        except (BadInput, AttributeError) as error:
            raise BadInput(
                f"{field}: {path} has {older} but no {TOKENIZER_FILE}, and transformers cannot convert it here; install"
                f" sentencepiece, or save the tokenizer with transformers and add its {TOKENIZER_FILE}"
            ) from error
    added = {token.content: token for _, token in sorted(backend.get_added_tokens_decoder().items())}
    special = frozenset(token for token, one in added.items() if one.special)
    ids = backend.get_vocab(with_added_tokens=True)
    if not ids:
        raise BadInput(f"{field}: {file} has no tokens; fetch it again")
    return TokenizerVocabulary(path, field, ids, added, special, rows, backend, content)


def _add_listed_tokens(path: pathlib.Path, backend: tokenizers.Tokenizer) -> None:
    """Adds the tokens that only files beside tokenizer.json list, as transformers does when it loads the folder."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for content, flags in _listed_beside(path):
        if content not in known:
            backend.add_tokens([tokenizers.AddedToken(content, **flags)])


def _listed_beside(path: pathlib.Path) -> list[tuple[str, dict[str, bool]]]:
    """The added tokens of tokenizer_config.json, else of added_tokens.json: text and flags, in order of ids."""
    settings = settings_of(path)
    if "added_tokens_decoder" in settings:
        listed = settings["added_tokens_decoder"]
        if not isinstance(listed, dict):
            return []
        try:
            in_order = [one for _, one in sorted(listed.items(), key=lambda item: int(item[0]))]
            return [
                (one["content"], {flag: bool(one[flag]) for flag in (*TOKEN_FLAGS, "special") if flag in one})
                for one in in_order
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(
                f"{path / SETTINGS_FILE}: added_tokens_decoder is malformed ({error!r}); fetch it again"
            ) from error
    file = path / ADDED_FILE
    ids = parse_json(file.read_bytes(), file) if file.is_file() else {}
    if not isinstance(ids, dict) or not all(type(index) is int for index in ids.values()):
        raise BadInput(f"{file}: does not map tokens to integer ids; fetch it again")
    special = _named_special(path, settings) if ids else set()
    return [
        (token, {"special": token in special, "normalized": token not in special})
        for token in sorted(ids, key=ids.__getitem__)
    ]


def _named_special(path: pathlib.Path, settings: Mapping[str, Any]) -> set[str]:
    """The tokens to which tokenizer_config.json or special_tokens_map.json assign a role, such as the padding token."""
    file = path / "special_tokens_map.json"
    mapped = parse_json(file.read_bytes(), file) if file.is_file() else {}
    named = set()
    for key, value in (*settings.items(), *(mapped.items() if isinstance(mapped, dict) else ())):
        if key.endswith(("_token", "_special_tokens")):
            tokens = value if isinstance(value, list) else [value]
            named |= {one["content"] if isinstance(one, dict) and "content" in one else str(one) for one in tokens}
    return named


def read_token_ids(path: pathlib.Path) -> tuple[dict[str, int], set[str]] | None:
    """Reads the token ids of tokenizer.json without the library, which may support less or more of its format.

    Args:
      path: the folder.

    Returns:
      Id by token, and the tokens added to the model's own (including special ones); None without the file.

    Raises:
      BadInput: the file is not a tokenizer.
    """
    file = path / TOKENIZER_FILE
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_bytes())
        model = content["model"]["vocab"]
        # Unigram models list [piece, score] in id order, BPE and WordPiece map piece to id.
        ids = dict(model) if isinstance(model, dict) else {piece: index for index, (piece, _) in enumerate(model)}
        added = {token["content"]: token["id"] for token in content.get("added_tokens") or []}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInput(f"{file}: is not a tokenizer file ({short(error)}); fetch it again") from error
    odd = next(((token, index) for token, index in (ids | added).items() if type(index) is not int or index < 0), None)
    if odd is not None or not all(isinstance(token, str) for token in ids | added):
        place = f"token {odd[0]!r} has id {odd[1]!r}" if odd else "a token is not a string"
        raise BadInput(f"{file}: {cut(place)}, but tokens are strings and ids integers from 0; fetch it again")
    return ids | added, set(added)


def check_token_ids(checkpoint: Checkpoint, rows: int = 0, *, refuse: bool = False) -> None:
    """Refuses or warns of tokens without a row in the embedding; a text with such a token gives wrong results.

    Args:
      checkpoint: a model with its tokenizer, if it has one.
      rows: the rows of the embedding; 0 takes the model's own.
      refuse: whether such tokens are refused; otherwise a warning is logged once.

    Raises:
      BadInput: there are such tokens and they are refused; or a tokenizer file is damaged.
    """
    entries = vocabulary_tensors(checkpoint)
    rows = rows or min((entry.shape[0] for entry in entries if entry.shape), default=0)
    if not rows:
        return
    known = read_token_ids(checkpoint.path)
    beyond = sorted((index, token) for token, index in (known[0] if known else {}).items() if index >= rows)
    if not beyond:
        return
    listed = listed_tokens([token for _, token in beyond])
    file = checkpoint.path / TOKENIZER_FILE
    message = f"{file}: {listed} from id {beyond[0][0]} on, but the embedding has {rows} rows"
    if refuse:
        raise BadInput(
            f"{message}; resize the model's embedding, or give a tokenizer (union, or the other model's) for the result"
        )
    _warn_once(f"{message}: a text that holds one of them gives wrong results; resize the embedding")


@functools.lru_cache(maxsize=256)
def _warn_once(message: str) -> None:
    logging.warning("%s", message)


def short(error: BaseException) -> str:
    """The first line of an exception's text, shortened: libraries may quote a whole file."""
    lines = str(error).splitlines()
    return cut(lines[0] if lines else type(error).__name__)


def cut(text: str, most: int = 200) -> str:
    """A text shortened to at most so many characters."""
    return text if len(text) <= most else text[: most - 3] + "..."


def load_tokenizer(folder: pathlib.Path, field: str):
    """Loads the tokenizer of a checkpoint folder with transformers, without contacting a hub.

    Raises:
      BadInput: the folder has no usable tokenizer, or its chat template exceeds the limits of `chat_template`.
    """
    # The library's advice to install PyTorch for models does not concern tokenizers.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers  # takes seconds to import, and a merge without evaluation does not need it

    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library raises bare Exception, KeyError and more for damaged files
        reason = short(error)
        there = (folder / TOKENIZER_FILE).is_file()
        mend = f"replace {TOKENIZER_FILE} and the files that belong to it" if there else "add its tokenizer files"
        raise BadInput(f"{field}: {folder} has no usable tokenizer ({reason}); {mend}") from error
    longest = tokenizer.model_max_length
    if isinstance(longest, bool) or not isinstance(longest, (int, float)):
        raise BadInput(f"{folder / SETTINGS_FILE}: model_max_length is {cut(repr(longest))}; give a number")
    limit_chat_template(tokenizer, field, folder)
    return tokenizer


def settings_of(path: pathlib.Path) -> dict[str, Any]:
    """The content of a folder's tokenizer_config.json; empty if there is none.

    Raises:
      BadInput: it is not JSON.
    """
    file = path / SETTINGS_FILE
    content = parse_json(file.read_bytes(), file) if file.is_file() else {}
    return content if isinstance(content, dict) else {}


def tokenizer_files(path: pathlib.Path) -> dict[str, bytes | pathlib.Path]:
    """The tokenizer files of a folder by name, including the chat template."""
    patterns = [one for one in CARRIED_FILES if one not in LICENCE_FILES and one != GENERATION_FILE]
    found = {file.name: file for pattern in patterns for file in path.glob(pattern) if file.is_file()}
    return dict(sorted(found.items()))


def json_bytes(content: Any) -> bytes:
    """The bytes of one of a tokenizer's JSON files."""
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def listed_tokens(tokens: Sequence[str], kind: str = "token") -> str:
    """The number of tokens and the first few by name, for messages."""
    shown = ", ".join(repr(token) for token in tokens[:_SHOWN])
    more = f" and {len(tokens) - _SHOWN} more" if len(tokens) > _SHOWN else ""
    return f"{len(tokens)} {kind}{'s' * (len(tokens) != 1)} ({shown}{more})"
