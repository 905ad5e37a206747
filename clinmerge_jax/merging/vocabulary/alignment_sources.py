"""The models whose vocabularies are aligned, and their tokenizers, each read on first use."""

import dataclasses
import functools
from collections.abc import Mapping

from clinmerge_jax.checkpoint.adapters.adapter import Adapter
from clinmerge_jax.checkpoint.folder import Checkpoint
from clinmerge_jax.checkpoint.tokenizers.embedding import vocabulary_rows
from clinmerge_jax.checkpoint.tokenizers.tokenizer import (
    TOKENIZER_FILE,
    TokenizerVocabulary,
    has_tokenizer,
    read_again,
    read_vocabulary,
)
from clinmerge_jax.errors import BadInput


@dataclasses.dataclass(frozen=True, eq=False)
class AlignmentSources:
    """The models of one alignment.

    Attributes:
      checkpoints: by name, in the recipe's order.
      base: the base model's name, "" for none.
      leading: the name of the model whose files the result takes, unless a tokenizer is asked for.
      adapters: LoRA adapters by model name.
    """

    checkpoints: Mapping[str, Checkpoint]
    base: str
    leading: str
    adapters: Mapping[str, Adapter] = dataclasses.field(default_factory=dict)
    _read: dict[str, TokenizerVocabulary] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def check_roles(self) -> None:
        """Refuses a base or a leading model that is not one of the models.

        Raises:
          BadInput: it is not one of them; the message names the role.
        """
        for role, name in (("base", self.base), ("leading", self.leading)):
            if name not in self.checkpoints and (name or role == "leading"):
                raise BadInput(f"{role}: {name!r} is not one of the models; give one of {', '.join(self.checkpoints)}")

    @functools.cached_property
    def sizes(self) -> dict[str, int]:
        """Number of embedding rows by model.

        Raises:
          BadInput: one has no embedding, or its embedding and head differ in rows.
        """
        return {name: vocabulary_rows(checkpoint) for name, checkpoint in self.checkpoints.items()}

    @property
    def same_size(self) -> bool:
        """Whether all embeddings have the same number of rows."""
        return len(set(self.sizes.values())) == 1

    @property
    def described_sizes(self) -> str:
        """The number of rows of each model, for messages."""
        return ", ".join(f"{self.checkpoints[name].label} {rows}" for name, rows in self.sizes.items())

    @property
    def lead(self) -> Checkpoint:
        """The leading model."""
        return self.checkpoints[self.leading]

    def vocabulary(self, name: str, *, convert: bool = True) -> TokenizerVocabulary | None:
        """One model's tokens.

        Args:
          name: of the model.
          convert: whether to read a tokenizer that has to be converted first.

        Returns:
          Its tokens; None where the folder has no tokenizer that may be read.

        Raises:
          BadInput: the tokenizer cannot be loaded or converted.
        """
        if name not in self._read:
            checkpoint = self.checkpoints[name]
            if not has_tokenizer(checkpoint.path, convert=convert):
                return None
            again = (read_again(one, checkpoint) for one in self._read.values())
            known = next((one for one in again if one is not None), None)
            self._read[name] = known or read_vocabulary(checkpoint, checkpoint.label)
        return self._read[name]

    def must_have(self, name: str) -> TokenizerVocabulary:
        """One model's tokens, which alignment requires.

        Raises:
          BadInput: it has no tokenizer, or one that cannot be loaded or converted.
        """
        one = self.vocabulary(name)
        if one is None:
            checkpoint = self.checkpoints[name]
            raise BadInput(f"{checkpoint.label}: {checkpoint.path} has no {TOKENIZER_FILE}; add its tokenizer")
        return one
