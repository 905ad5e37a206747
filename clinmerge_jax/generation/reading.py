"""How prompts are read: in chunks of which lengths, and how many of them together.

S slots, P prompts that a refill reads together, C tokens of a chunk, T positions of the cache.
"""

import dataclasses
from collections.abc import Sequence

from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.parallel.layout import Layout

CHUNKS = (32, 64, 128, 256, 512)  # tokens of every prompt that are read at once; the smallest that fits is taken
_TEMPORARIES = 2**28  # the most numbers that reading S prompts together may hold for a layer: 1 GB in float32
_PADDING = 1.25  # the most tokens, padding included, that S prompts together may take of what P at a time take


@dataclasses.dataclass(frozen=True)
class Reading:
    """How an engine reads prompts.

    Attributes:
      config: the model.
      slots: S.
      refilled: P.
      length: T.
      asked_chunks: the lengths of chunks that were asked for.
    """

    config: LlamaConfig
    slots: int
    refilled: int
    length: int
    asked_chunks: tuple[int, ...]

    @classmethod
    def of(cls, layout: Layout, slots: int, length: int, chunks: Sequence[int]) -> "Reading":
        """P is an eighth of the slots, or more where the mesh cuts a batch into more parts."""
        parts = layout.parts("batch")
        return cls(layout.config, slots, -(-max(1, slots // 8) // parts) * parts, length, tuple(chunks))

    @property
    def chunks(self) -> tuple[int, ...]:
        """The lengths of chunks, the smallest first; none is longer than T."""
        return tuple(sorted({min(chunk, self.length) for chunk in self.asked_chunks}))

    def widths(self, count: int) -> list[int]:
        """The lengths of the chunks in which so many tokens are read."""
        widths: list[int] = []
        while count > 0:
            widths.append(next((chunk for chunk in self.chunks if chunk >= count), self.chunks[-1]))
            count -= widths[-1]
        return widths

    def rows(self, whole: bool) -> int:
        """The rows of the programs that read: S for all slots at once, else P."""
        return self.slots if whole else self.refilled

    def all_at_once(self, lengths: Sequence[int], start: int) -> bool:
        """Whether the first S prompts of a queue are read into free slots at once; otherwise P at a time.

        They are if they fill all slots, if they are of much the same length, as all are padded to the longest, and if
        what a layer holds for S x C tokens stays under `_TEMPORARIES`: the three arrays of the MLP, and the attention's
        scores over the chunk or, from the second chunk on, over T positions. Many slots with long prompts exceed it;
        there P x C tokens are enough to keep the processor busy.

        Args:
          lengths: of the prompts, the longest first.
          start: the tokens of each that were read before.
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
