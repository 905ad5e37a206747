"""Open the starting checkpoint of a run, and choose its training examples."""

import dataclasses
import enum
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from ml_collections import ConfigDict

from clinmerge_jax import provenance
from clinmerge_jax.checkpoint.folder import Checkpoint, open_checkpoint
from clinmerge_jax.checkpoint.parameters.params import llama_config
from clinmerge_jax.checkpoint.tokenizers.tokenizer import load_tokenizer
from clinmerge_jax.data.batch import Batch
from clinmerge_jax.data.documents import Document
from clinmerge_jax.data.examples import Examples, assemble
from clinmerge_jax.data.few_shot import choose, divide
from clinmerge_jax.errors import BadInput
from clinmerge_jax.fine_tuning.learned import LETTER, TEXT, LearnedSet, Reader, refuse_unused_own
from clinmerge_jax.generation.stopping import stop_ids
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.tasks.learned import Learned, read_learned
from clinmerge_jax.training.batching import Batching
from clinmerge_jax.training.run import name_rows

_Choice = TypeVar("_Choice", bound=enum.Enum)

_LONGEST = 4096  # default maximum number of tokens of a row


class Packing(enum.Enum):
    """Which examples share a row."""

    AUTO = "auto"  # step; none if the attention kernel does not support several examples in a row
    STEP = "step"  # the examples of a step, packed into few rows
    NONE = "none"  # each example has a row of its own
    SET = "set"  # the whole set is packed into full rows once; a step takes `batch_size` rows


def choice(kind: type[_Choice], value: str, field: str) -> _Choice:
    """The member of an enumeration that a config's field names.

    Raises:
      BadInput: the name is unknown.
    """
    try:
        return kind(value)
    except ValueError as error:
        names = ", ".join(one.value for one in kind)
        raise BadInput(f"config.{field}: {value!r} is unknown; give one of {names}") from error


def packing_of(config: ConfigDict) -> Packing:
    """The packing that `config.packing` names.

    Raises:
      BadInput: the name is unknown.
    """
    return choice(Packing, config.packing, "packing")


def row_length(config: ConfigDict, llama: LlamaConfig) -> int:
    """The maximum number of tokens of a row.

    Raises:
      BadInput: `config.length` is below 2 or exceeds the model's context length.
    """
    context = llama.max_position_embeddings
    length = config.length or min(context, _LONGEST)
    if not 1 < length <= context:
        raise BadInput(f"config.length: is {config.length}; give 2 or more, up to the model's context of {context}")
    return length


@dataclasses.dataclass(frozen=True)
class Start:
    """The checkpoint to train.

    Attributes:
      checkpoint: the opened folder.
      llama: its architecture.
      dtype: the dtype of its stored weights.
      credentialed: whether results are under a data use agreement, by the config or the checkpoint.
    """

    checkpoint: Checkpoint
    llama: LlamaConfig
    dtype: np.dtype
    credentialed: bool

    @functools.cached_property
    def digests(self) -> Mapping[str, str]:
        """SHA-256 of its weight files, computed once for all runs that start from it."""
        return provenance.digests(self.checkpoint, {})


def open_start(config: ConfigDict) -> Start:
    """Opens `config.model`.

    Raises:
      BadInput: the checkpoint is not a Llama, or mixes dtypes.
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
      examples: the examples to learn.
      validation: the examples of the validation loss.
      replay: the examples to mix in.
      learned: the tasks among the examples and the replay, for the result's record.
      credentialed: whether some of the examples or the replay are under a data use agreement.
    """

    examples: Examples
    validation: Examples | None = None
    replay: Examples | None = None
    learned: Sequence[Learned] = ()
    credentialed: bool = False

    def named(self) -> dict[str, Examples]:
        """The sets that exist, by name."""
        sets = {"examples": self.examples, "validation": self.validation, "replay": self.replay}
        return {name: one for name, one in sets.items() if one is not None}

    def rows(self, config: ConfigDict, llama: LlamaConfig) -> Batching:
        """How a step takes the sequences.

        Raises:
          BadInput: as `Batching`.
        """
        replay = self.replay
        return Batching(
            config.batch_size,
            config.micro_batch,
            replay.sequences if replay else None,
            config.replay.share if replay else 0.0,
            length=row_length(config, llama),
            alone=packing_of(config) is Packing.NONE,
        )

    def name_rows(self) -> Callable[[Batch], str]:
        """A function from rows, [K, T], to a text with the ids of the documents in them."""
        learned = [one for one in (self.examples, self.replay) if one is not None]
        return name_rows([one.sequences for one in learned], [one.ids() for one in learned])


class Source:
    """Provides the sets of runs that differ only in shots and seeds; files are read once.

    Args:
      config: the job's config.
      start: the starting checkpoint.

    Raises:
      BadInput: a field or a file is wrong.
    """

    def __init__(self, config: ConfigDict, start: Start):
        self._length = row_length(config, start.llama)
        self._full_rows = packing_of(config) is Packing.SET
        if not config.task:
            raise BadInput("config.task: is empty; name a file of examples, or a task")
        if config.answer not in (LETTER, TEXT):
            raise BadInput(f"config.answer: {config.answer!r} is unknown; give {LETTER} or {TEXT}")
        if config.too_long not in ("cut", "refuse"):
            raise BadInput(f"config.too_long: {config.too_long!r} is unknown; give cut or refuse")
        self._config = config
        self._vocabulary = start.llama.vocab_size
        tokenizer = load_tokenizer(start.checkpoint.path, "config.model")
        refuse_unused_own(config)
        reader = Reader(config, tokenizer, stop_ids(start.checkpoint), self._length)
        self._sets = reader.read(config.task, "config.task")
        validated, replayed = (
            reader.read(names, field) if names else []
            for names, field in (
                (config.validation, "config.validation"),
                (config.replay.task, "config.replay.task"),
            )
        )
        self._validation = self._whole(validated)
        self._replay = self._whole(replayed)
        self._replayed = replayed
        self._before = read_learned(start.checkpoint.path)

    def _whole(self, sets: Sequence[LearnedSet]) -> Examples | None:
        return self._assemble([(one, one.documents) for one in sets]) if sets else None

    def _assemble(self, parts: Sequence[tuple[LearnedSet, Sequence[Document]]]) -> Examples:
        documents = [document for _, chosen in parts for document in chosen]
        encoded = [one.encode(document) for one, chosen in parts for document in chosen]
        return assemble(
            documents, encoded, self._vocabulary, self._length, full_rows=self._full_rows, field="config.model"
        )

    def sets(self, shots: int, seed: int) -> Sets:
        """The sets of one run.

        Args:
          shots: the number of examples to choose; 0 for all.
          seed: the seed of the choice.

        Raises:
          BadInput: there are fewer examples, or validation documents occur among the examples or the replay.
        """
        if len(self._sets) == 1:
            parts = [(self._sets[0], choose(self._sets[0].documents, shots, seed))]
        else:
            given = divide(shots, [len(one.documents) for one in self._sets], [one.share for one in self._sets])
            parts = [(one, choose(one.documents, count, seed)) for one, count in zip(self._sets, given) if count]
        examples = self._assemble(parts)
        if self._validation is not None:
            learned = [*examples.documents, *(self._replay.documents if self._replay else ())]
            digests = {document.digest for document in learned}
            shared = [one for one in self._validation.documents if one.digest in digests]
            if shared:
                raise BadInput(
                    f"config.validation: {len(shared)} of its documents are also among the examples, the first is"
                    f" {shared[0].id}; remove them"
                )
        taken = [*parts, *((one, one.documents) for one in self._replayed)]
        tasks = [task for one, chosen in taken if (task := one.learned(chosen)) is not None]
        credentialed = any(one.credentialed for one, _ in taken)
        return Sets(examples, self._validation, self._replay, (*self._before, *tasks), credentialed)
