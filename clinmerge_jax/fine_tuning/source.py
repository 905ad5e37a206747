"""What a run starts from and what it learns: the opened checkpoint, and sets of examples chosen from its task."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import numpy as np
from ml_collections import ConfigDict

from clinmerge_jax import provenance
from clinmerge_jax.checkpoint.folder import Checkpoint, open_checkpoint
from clinmerge_jax.checkpoint.params import llama_config
from clinmerge_jax.checkpoint.tokenizer import load_tokenizer
from clinmerge_jax.data.documents import Document
from clinmerge_jax.data.examples import Examples, prepare, read
from clinmerge_jax.data.few_shot import choose
from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.training.run import Rows, name_rows

_LONGEST = 4096  # tokens of a row, unless more are asked for


@dataclasses.dataclass(frozen=True)
class Start:
    """The checkpoint that is trained.

    Attributes:
      checkpoint: the folder.
      llama: its architecture.
      dtype: in which its weights are stored.
      credentialed: whether the result is under a use agreement.
    """

    checkpoint: Checkpoint
    llama: LlamaConfig
    dtype: np.dtype
    credentialed: bool

    @functools.cached_property
    def digests(self) -> Mapping[str, str]:
        """SHA-256 of its weight files; they are read once, however many runs start from them."""
        return provenance.digests(self.checkpoint, {})


def open_start(config: ConfigDict) -> Start:
    """Opens `config.model`.

    Raises:
      BadInput: it is no Llama, or mixes dtypes.
    """
    checkpoint = open_checkpoint(config.model, "config.model")
    llama = llama_config(checkpoint)
    dtypes = {entry.dtype for entry in checkpoint.tensors.values()}
    if len(dtypes) > 1:
        raise BadInput(f"config.model: {checkpoint.path} mixes {', '.join(map(str, dtypes))}; save it in one dtype")
    credentialed = provenance.is_credentialed(config.credentialed, [checkpoint])
    return Start(checkpoint, llama, dtypes.pop(), credentialed)


@dataclasses.dataclass(frozen=True)
class Sets:
    """The sets of one run.

    Attributes:
      examples: what is learned.
      validation: what the validation loss is of.
      replay: what is mixed in.
    """

    examples: Examples
    validation: Examples | None = None
    replay: Examples | None = None

    def named(self) -> dict[str, Examples]:
        """Those that there are."""
        sets = {"examples": self.examples, "validation": self.validation, "replay": self.replay}
        return {name: one for name, one in sets.items() if one is not None}

    def rows(self, config: ConfigDict) -> Rows:
        """How a step takes them.

        Raises:
          BadInput: as `Rows`.
        """
        replay = self.replay
        share = config.replay.share if replay else 0.0
        return Rows(config.batch_size, config.micro_batch, replay.rows if replay else None, share)

    def name_rows(self) -> Callable[[np.ndarray], str]:
        """A function that gives rows of tokens, [K, T], the ids of the documents in them."""
        learned = [one for one in (self.examples, self.replay) if one is not None]
        return name_rows([one.rows for one in learned], [ids for one in learned for ids in one.ids_by_row()])


class Source:
    """Where the sets of runs come from that differ in nothing but shots and seeds: files are read once.

    Args:
      config: of the job.
      start: the model.

    Raises:
      BadInput: a field or a file is wrong.
    """

    def __init__(self, config: ConfigDict, start: Start):
        context = start.llama.max_position_embeddings
        self._length = config.length or min(context, _LONGEST)
        if not 1 < self._length <= context:
            raise BadInput(f"config.length: is {config.length}; give 2 or more, up to the model's context of {context}")
        if not config.task:
            raise BadInput("config.task: is empty; name a file of examples")
        self._config = config
        self._vocabulary = start.llama.vocab_size
        self._tokenizer = load_tokenizer(start.checkpoint.path, "config.model")
        self._documents = self._read(config.task, "config.task")
        self._validation, self._replay = (
            self._prepare(self._read(task, field)) if task else None
            for task, field in (
                (config.validation, "config.validation"),
                (config.replay.task, "config.replay.task"),
            )
        )

    def _read(self, task: str, field: str) -> list[Document]:
        learned = field == "config.task"  # of the others no subset is chosen, so their rows need no class
        fields = self._config.replay.fields if field == "config.replay.task" else self._config.fields
        return read(task, field, self._config.label * learned, self._config.data_dir, fields)

    def _prepare(self, documents: list[Document]) -> Examples:
        return prepare(
            documents,
            self._tokenizer,
            self._vocabulary,
            self._length,
            chat=self._config.chat_template,
            packing=self._config.packing,
            field="config.model",
        )

    def sets(self, shots: int, seed: int) -> Sets:
        """The sets of a run.

        Args:
          shots: how many examples are chosen; 0 for all.
          seed: of the choice.

        Raises:
          BadInput: there are fewer, or some of them are validation documents too.
        """
        examples = self._prepare(choose(self._documents, shots, seed))
        if self._validation is not None:
            learned = [*examples.documents, *(self._replay.documents if self._replay else ())]
            digests = {document.digest for document in learned}
            shared = [one for one in self._validation.documents if one.digest in digests]
            if shared:
                raise BadInput(
                    f"config.validation: the words of {len(shared)} of its documents are among the examples too,"
                    f" {shared[0].id} the first; take them out"
                )
        return Sets(examples, self._validation, self._replay)
