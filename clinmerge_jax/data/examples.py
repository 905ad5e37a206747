"""Training examples: documents turned into sequences of tokens."""

import dataclasses
from collections.abc import Sequence

from clinmerge_jax.data.documents import Document, Encoded, check_vocabulary, encode
from clinmerge_jax.data.miniature import corpus
from clinmerge_jax.data.packing import Packed, pack
from clinmerge_jax.data.reading import read_documents
from clinmerge_jax.data.sequences import Sequences
from clinmerge_jax.errors import BadInput

_MINIATURE = "miniature:"
_MINIATURE_SEED = 2  # other documents than the shipped models were trained on
_MINIATURE_DOCUMENTS = 1000


@dataclasses.dataclass(frozen=True)
class Examples:
    """Token sequences with the documents they were made from.

    Attributes:
      documents: the chosen documents.
      sequences: the sequences; a step takes `batch_size` of them.
      packed: statistics of the conversion from documents to sequences.
      shortened: how many documents had their source cut at the end.
    """

    documents: Sequence[Document]
    sequences: Sequences
    packed: Packed
    shortened: int = 0

    def __str__(self) -> str:
        cut = f"; the input of {self.shortened:,} is shortened to fit" if self.shortened else ""
        return f"{self.packed}{cut}"

    def ids(self) -> list[str]:
        """The document id of every segment of every sequence, in order."""
        return [self.documents[index].id for index in self.packed.contents]

    def digest(self) -> str:
        """SHA-256 of the sequences."""
        return self.sequences.digest()


def read(task: str, field: str, label: str = "", data_dir: str = "", fields: str = "") -> list[Document]:
    """Reads documents from a file, a folder, a prepared data set, or `miniature:clinical` and `miniature:instruct`.

    Args:
      task: the source; see `reading.read_documents`.
      field: the config field that holds `task`, for messages.
      label: the column that holds a row's class; empty if there are no classes.
      data_dir: the folder of prepared data sets.
      fields: a map of columns to fields; not used for the miniature.

    Raises:
      BadInput: as `reading.read_documents`, or the miniature has no such corpus.
    """
    if not task.startswith(_MINIATURE):
        return read_documents(task, field, label or None, data_dir or None, fields)
    name = task.removeprefix(_MINIATURE)
    if name not in ("clinical", "instruct"):
        raise BadInput(f"{field}: {task!r} is not a corpus; choose from miniature:clinical, miniature:instruct")
    return corpus(name, _MINIATURE_SEED, _MINIATURE_DOCUMENTS)


def prepare(
    documents: Sequence[Document], tokenizer, vocab_size: int, length: int, *, chat: bool, full_rows: bool, field: str
) -> Examples:
    """Tokenizes documents and makes sequences of them.

    Args:
      documents: the documents to learn.
      tokenizer: a transformers tokenizer.
      vocab_size: the model's vocabulary size.
      length: the maximum number of tokens of a sequence.
      chat: whether prompts and completions become conversations.
      full_rows: whether sequences are whole rows filled with documents (`packing.pack`).
      field: the config field that names the tokenizer, for messages.

    Raises:
      BadInput: a document cannot be encoded, or nothing would be learned.
    """
    encoded = [encode(document, tokenizer, tokenizer.eos_token_id, chat, length) for document in documents]
    return assemble(documents, encoded, vocab_size, length, full_rows=full_rows, field=field)


def assemble(
    documents: Sequence[Document],
    encoded: Sequence[Encoded],
    vocab_size: int,
    length: int,
    *,
    full_rows: bool,
    field: str,
) -> Examples:
    """Makes sequences of encoded documents. Arguments and errors are those of `prepare`."""
    check_vocabulary((one.tokens for one in encoded), vocab_size, field)
    sequences, packed = pack(encoded, length, full_rows)
    return Examples(documents, sequences, packed, sum(one.shortened for one in encoded))
