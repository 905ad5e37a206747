"""What a training run learns from: documents read, chosen, turned into tokens and packed into rows."""

import dataclasses
import hashlib
from collections.abc import Sequence

from clinmerge_jax.data.batch import Batch
from clinmerge_jax.data.documents import Document, check_vocabulary, encode
from clinmerge_jax.data.packing import Packed, pack
from clinmerge_jax.data.reading import read_documents
from clinmerge_jax.errors import BadInput
from clinmerge_jax.miniature.corpus import corpus

_MINIATURE = "miniature:"
_MINIATURE_SEED = 2  # other documents than the shipped models were trained on
_MINIATURE_DOCUMENTS = 1000


@dataclasses.dataclass(frozen=True)
class Examples:
    """Rows and where they come from.

    Attributes:
      documents: that were chosen.
      rows: [N, T].
      packed: what became of the documents.
    """

    documents: Sequence[Document]
    rows: Batch
    packed: Packed

    def ids_by_row(self) -> list[list[str]]:
        """The ids of the documents in each row."""
        return [[self.documents[index].id for index in row] for row in self.packed.contents]

    def digest(self) -> str:
        """SHA-256 of the rows."""
        arrays = (self.rows.tokens, self.rows.targets, self.rows.segments)
        return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def read(task: str, field: str, label: str = "", data_dir: str = "", fields: str = "") -> list[Document]:
    """The documents of a file, a folder, a prepared data set, or `miniature:clinical` and `miniature:instruct`.

    Args:
      task: where they are; see `reading.read_documents`.
      field: the config field that gave it.
      label: the field of the rows that has their class; empty where there are none.
      data_dir: of prepared data sets.
      fields: a map of columns to fields; the miniature has none to map.

    Raises:
      BadInput: as `reading.read_documents`, or the miniature has no such corpus.
    """
    if not task.startswith(_MINIATURE):
        return read_documents(task, field, label or None, data_dir or None, fields)
    name = task.removeprefix(_MINIATURE)
    if name not in ("clinical", "instruct"):
        raise BadInput(f"{field}: there is no corpus {task!r}; there are miniature:clinical and miniature:instruct")
    return corpus(name, _MINIATURE_SEED, _MINIATURE_DOCUMENTS)


def prepare(
    documents: Sequence[Document], tokenizer, vocab_size: int, length: int, *, chat: bool, packing: bool, field: str
) -> Examples:
    """Tokenizes documents and packs them into rows.

    Args:
      documents: what is learned.
      tokenizer: of transformers.
      vocab_size: of the model.
      length: T.
      chat: whether prompts and completions become messages.
      packing: whether rows hold several documents.
      field: the config field that gave the tokenizer.

    Raises:
      BadInput: a document cannot be encoded, or nothing would be learned.
    """
    encoded = [encode(document, tokenizer, tokenizer.eos_token_id, chat) for document in documents]
    check_vocabulary(encoded, vocab_size, field)
    rows, packed = pack(encoded, length, packing)
    return Examples(documents, rows, packed)
