"""Prefill plan: the chunk lengths in which prompts are read, and how many prompts are read together.

S slots, P prompts that a refill reads together, C tokens of a chunk, T positions of the cache.
"""

import dataclasses
from collections.abc import Sequence

from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.parallel.layout import Layout

CHUNKS = (32, 64, 128, 256, 512)  # tokens of a prompt that are read at once; the smallest that fits is used
_TEMPORARIES = 2**28  # the most numbers in a layer's temporaries when S prompts are read together: 1 GB in float32
_PADDING = 1.25  # S prompts are read together if they take at most this times the padded tokens of P at a time


@dataclasses.dataclass(frozen=True)
class Reading:
    """How an engine prefills prompts.

    Attributes:
      config: the model.
      slots: S.
      refilled: P.
      length: T.
      asked_chunks: the requested chunk lengths.
    """

    config: LlamaConfig
    slots: int
    refilled: int
    length: int
    asked_chunks: tuple[int, ...]

    @classmethod
    def of(cls, layout: Layout, slots: int, length: int, chunks: Sequence[int]) -> "Reading":
        """Sets P to an eighth of the slots, but at least one, rounded up to a multiple of the mesh's batch shards."""
        parts = layout.parts("batch")
        return cls(layout.config, slots, -(-max(1, slots // 8) // parts) * parts, length, tuple(chunks))

    @property
    def chunks(self) -> tuple[int, ...]:
        """The chunk lengths in increasing order; none is longer than T."""
        return tuple(sorted({min(chunk, self.length) for chunk in self.asked_chunks}))

    def widths(self, count: int) -> list[int]:
        """Returns the lengths of the chunks in which `count` tokens are read."""
        widths: list[int] = []
        while count > 0:
            widths.append(next((chunk for chunk in self.chunks if chunk >= count), self.chunks[-1]))
            count -= widths[-1]
        return widths

    def rows(self, whole: bool) -> int:
        """Returns the rows of a prefill program: S for all slots at once, else P."""
        return self.slots if whole else self.refilled

    def all_at_once(self, lengths: Sequence[int], start: int) -> bool:
        """Returns whether the first S prompts of a queue are read together; otherwise they are read P at a time.

        They are if they fill all slots, if their lengths are similar (all are padded to the longest), and if a layer's
        temporaries for S x C tokens do not exceed `_TEMPORARIES`. The temporaries are the three arrays of the MLP, and
        the attention scores over the chunk or, from the second chunk on, over T positions. Many slots with long prompts
        exceed the limit; then P x C tokens are enough to keep the processor busy.

        Args:
          lengths: the lengths of the prompts, the longest first.
          start: the number of tokens of each that were read before.
        """
        if self.refilled == self.slots:
            return True
        if len(lengths) < self.slots:
            return False
        config, widths = self.config, self.widths(lengths[0] - start)
        for index, width in enumerate(widths):
            seen = self.length if index or start else width
            if self.slots * width * (3 * config.intermediate_size + config.num_attention_heads * seen) > _TEMPORARIES:
                return False
        apart = sum(sum(self.widths(longest - start)) for longest in lengths[:: self.refilled])
        return self.slots * sum(widths) <= _PADDING * self.refilled * apart
