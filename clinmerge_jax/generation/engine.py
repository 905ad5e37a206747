"""The decode engine: a fixed number of slots, refilled from a queue of requests as rows finish.

Prompts are prefilled in chunks of a few fixed lengths: S prompts at a time if all slots are free, P at a time if some
slots are refilled. Tokens are decoded by one compiled loop that returns when enough rows have finished. Lengths,
limits, stop ids and sampling settings are traced, so another request compiles nothing.

S slots, P prompts that a refill reads together, C tokens of a chunk, T positions of the cache, V vocabulary.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clinmerge_jax.errors import BadInput
from clinmerge_jax.generation import programs
from clinmerge_jax.generation.memory import check_memory
from clinmerge_jax.generation.programs import Models, State, empty_state, unstacker
from clinmerge_jax.generation.reading import CHUNKS, Reading
from clinmerge_jax.generation.sampling import Kind, Sampling, Settings
from clinmerge_jax.llama.attention import Backend, Use, resolve
from clinmerge_jax.llama.cache import Cache
from clinmerge_jax.llama.parameters import Params
from clinmerge_jax.parallel.layout import Layout

_STOP_IDS = 16  # the most stop ids
_LOOP_STEPS = 64  # the loop returns after so many steps at the latest, so that progress shows
_SHARED = 16  # the fewest tokens of a common prefix that is worth reading once


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt.

    Attributes:
      tokens: token ids of the prompt, at least one.
      max_new_tokens: the most tokens to generate.
      sampling: how tokens are chosen.
      stopped: takes the tokens generated so far and returns whether they end the answer (for stop strings).
    """

    tokens: np.ndarray
    max_new_tokens: int
    sampling: Sampling = Sampling()
    stopped: Callable[[np.ndarray], bool] | None = None


@dataclasses.dataclass(frozen=True)
class Answer:
    """The completion of one request.

    Attributes:
      tokens: token ids, without the stop id.
      finished: whether a stop id or `Request.stopped` ended it, not its limit.
    """

    tokens: np.ndarray
    finished: bool


@dataclasses.dataclass
class Counts:
    """Work that an engine has done since it was made.

    Attributes:
      prompt_tokens: prompt tokens read; a shared prefix counts once.
      new_tokens: tokens generated.
      steps: steps of the decode loop.
      rows: rows computed in these steps, including free slots.
      live_rows: rows that generated a token in these steps.
    """

    prompt_tokens: int = 0
    new_tokens: int = 0
    steps: int = 0
    rows: int = 0
    live_rows: int = 0

    @property
    def live_share(self) -> float:
        """The share of the decode steps' rows that generated a token."""
        return self.live_rows / self.rows if self.rows else 1.0


def check_engine(
    layout: Layout,
    slots: int,
    length: int,
    stop_ids: Sequence[int],
    dtype: Any,
    attention: str | Backend = Backend.AUTO,
    models: int = 1,
) -> Backend:
    """Checks an engine's settings before weights are read; arguments as in `Engine`.

    Args:
      layout, slots, length, stop_ids, attention: as in `Engine`.
      dtype: the dtype of keys and values.
      models: the number of models, each with its own cache.

    Returns:
      The attention backend of its decode steps.

    Raises:
      BadInput: the slots are not a multiple of the mesh's batch shards, the model's context is shorter than `length`,
        the cache does not fit into memory, there are too many stop ids, or the attention backend is not available.
    """
    context, parts = layout.config.max_position_embeddings, layout.parts("batch")
    if slots < 1 or slots % parts:
        raise BadInput(
            f"config.slots: is {slots}; give a multiple of {parts}, the parts into which the mesh cuts a batch"
        )
    if not 1 < length <= context:
        raise BadInput(
            f"config.length: {length} tokens of prompt and answer do not fit the model's context of {context}; give"
            " fewer"
        )
    if len(stop_ids) > _STOP_IDS:
        raise BadInput(f"generation_config.json: has {len(stop_ids)} stop ids; {_STOP_IDS} at most are supported")
    check_memory(layout, slots, length, dtype, models)
    return resolve(attention, Use.CACHE, layout.config, dtype, layout.device, length=length)


class Engine:
    """Generates completions and scores continuations with one model, or with several whose logits are mixed.

    Args:
      layout: the sharding of the parameters.
      params: the model's parameters, in the dtype of the computation; of several models of one config a sequence.
      weights: the weights of the models' logits; one model has the weight 1.
      slots: S, the rows of a decode step; a multiple of the mesh's batch shards.
      length: T, the most tokens of a prompt and its answer together.
      stop_ids: tokens that end an answer.
      chunks: the chunk lengths in which prompts are read.
      share_prefix: whether a prefix common to all prompts of a call is read only once.
      int8_weights: whether the layers' matrices are stored in int8, with a scale for each row.
      int8_cache: whether keys and values are stored in int8, with a scale for each head and position.
      attention: the backend of the decode steps. Prompts and continuations use the reference: their chunks attend over
        the cache with several tokens of a row at once, and no other backend here supports that.

    Raises:
      BadInput: as in `check_engine`.
    """

    def __init__(
        self,
        layout: Layout,
        params: Params | Sequence[Params],
        *,
        weights: Sequence[float] = (1.0,),
        slots: int,
        length: int,
        stop_ids: Sequence[int] = (),
        chunks: Sequence[int] = CHUNKS,
        share_prefix: bool = True,
        int8_weights: bool = False,
        int8_cache: bool = False,
        attention: str | Backend = Backend.AUTO,
    ):
        each = [params] if isinstance(params, Mapping) else list(params)
        dtype = each[0]["embed_tokens"]["weight"].dtype
        self._cache_dtype = jnp.dtype(jnp.int8) if int8_cache else dtype
        self._attention = check_engine(layout, slots, length, stop_ids, self._cache_dtype, attention, len(each))
        self.layout = layout
        self.slots = slots
        self.length = length
        self.counts = Counts()
        self._models = Models(tuple(map(unstacker(layout, int8_weights), each)), np.asarray(weights, np.float32))
        self._dtype = dtype
        self._stop_ids = tuple(int(index) for index in stop_ids)
        self._asked_attention = attention
        self._reading = Reading.of(layout, slots, length, chunks)
        self._together = self._reading.refilled
        self._share_prefix = share_prefix

    @property
    def _count(self) -> int:
        """The number of models."""
        return len(self._models.params)

    def _empty(self, kind: Kind) -> State:
        return empty_state(self.layout, self.slots, self.length, self._cache_dtype, kind, self._count)

    def of_length(self, length: int) -> "Engine":
        """Returns an engine with the same weights, for prompts and answers of another length.

        Raises:
          BadInput: as in `check_engine`.
        """
        other = copy.copy(self)
        other._attention = check_engine(
            self.layout, self.slots, length, self._stop_ids, self._cache_dtype, self._asked_attention, self._count
        )
        other.length = length
        other._reading = Reading.of(self.layout, self.slots, length, self._reading.asked_chunks)
        return other

    def stopping_at(self, token: int) -> "Engine":
        """Returns an engine with the same weights and one more stop id."""
        other = copy.copy(self)
        other._stop_ids = tuple(dict.fromkeys((*self._stop_ids, token)))
        return other

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        """Yields the index of each request and its answer as rows finish, in no particular order.

        Raises:
          BadInput: a request does not fit; raised before any request runs.
        """
        for index, request in enumerate(requests):
            if request.max_new_tokens < 1:
                raise BadInput(f"config.max_new_tokens: is {request.max_new_tokens}; give 1 or more")
            self._check(f"request {index}", len(request.tokens), request.max_new_tokens)
        kind = Kind.of([request.sampling for request in requests])
        queue = sorted(range(len(requests)), key=lambda index: -len(requests[index].tokens))
        state = self._empty(kind)
        prefix = self._common_prefix([request.tokens for request in requests])
        shared = None
        if len(prefix):
            caches, _ = self._read(state.caches, [(0, prefix, 0)])
            state, shared = dataclasses.replace(state, caches=caches), programs.row_of(caches, np.int32(0))
        running: dict[int, int] = {}
        while queue or running:
            free = [slot for slot in range(self.slots) if slot not in running]
            while queue and free:
                first = [len(requests[index].tokens) for index in queue[: self.slots]]
                whole = len(free) == self.slots and self._reading.all_at_once(first, len(prefix))
                count = min(len(free), len(queue), self._reading.rows(whole))
                chosen = [(free.pop(0), queue.pop(0)) for _ in range(count)]
                state = self._admit(
                    state, [(slot, requests[index]) for slot, index in chosen], whole, shared, len(prefix), kind
                )
                running |= dict(chosen)
            watched = any(requests[index].stopped for index in running.values())
            until = max(0, len(running) - self._together) if queue else 0
            state, steps = programs.decode(
                self._models, state, self._stops(), np.int32(_LOOP_STEPS // (4 if watched else 1)), np.int32(until),
                layout=self.layout, kind=kind, attention=self._attention,
            )  # fmt: skip
            live, produced, output = map(np.asarray, jax.device_get((state.live, state.produced, state.output)))
            ended = np.zeros(self.slots, bool)
            self.counts.steps += int(steps)
            self.counts.rows += int(steps) * self.slots
            for slot, index in list(running.items()):
                request, tokens = requests[index], output[slot, : produced[slot]]
                ended[slot] = live[slot] and request.stopped is not None and request.stopped(tokens)
                if live[slot] and not ended[slot]:
                    continue
                del running[slot]
                self.counts.new_tokens += len(tokens)
                self.counts.live_rows += len(tokens) - 1  # the first token comes from the prefill
                by_id = len(tokens) > 0 and int(tokens[-1]) in self._stop_ids
                by_text = ended[slot] or (request.stopped is not None and request.stopped(tokens))
                yield index, Answer(tokens[: len(tokens) - by_id].copy(), bool(by_id or by_text))
            if ended.any():
                state = programs.end(state, ended)

    def score(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Computes log-probabilities of continuations.

        Args:
          pairs: token ids of a context, at least one, and of its continuation. Equal contexts are read once.

        Returns:
          For each pair the log-probability of every token of the continuation, in nats, float32, and whether greedy
          decoding would choose that token.

        Raises:
          BadInput: a pair does not fit.
        """
        for index, (context, continuation) in enumerate(pairs):
            # The last token is predicted but never read, so it needs no position.
            self._check(f"pair {index}", len(context), max(len(continuation) - 1, 0))
        by_context: dict[bytes, list[int]] = {}
        for index, (context, _) in enumerate(pairs):
            by_context.setdefault(np.asarray(context, np.int32).tobytes(), []).append(index)
        groups = sorted(by_context.values(), key=lambda group: -len(pairs[group[0]][0]))
        results: list = [None] * len(pairs)
        caches = self._empty(Kind()).caches
        for start in range(0, len(groups), self.slots):
            batch = groups[start : start + self.slots]
            contexts = [(row, pairs[group[0]][0][:-1], 0) for row, group in enumerate(batch)]
            whole = self._reading.all_at_once([len(tokens) for _, tokens, _ in contexts], 0)
            for first in range(0, len(batch), self._reading.rows(whole)):
                caches, _ = self._read(caches, contexts[first : first + self._reading.rows(whole)], whole)
            work = [(row, index) for row, group in enumerate(batch) for index in group if len(pairs[index][1])]
            for index in (index for group in batch for index in group):
                results[index] = (np.zeros(0, np.float32), np.zeros(0, bool))
            work.sort(key=lambda item: -len(pairs[item[1]][1]))
            for first in range(0, len(work), self._together):
                some = work[first : first + self._together]
                for (_, index), found in zip(some, self._score_some(caches, pairs, some)):
                    results[index] = found
        return results

    def _score_some(
        self, caches: tuple[Cache, ...], pairs, some: Sequence[tuple[int, int]]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        longest = max(len(pairs[index][1]) for _, index in some)
        width = next((chunk for chunk in self._reading.chunks if chunk >= longest), self.length)
        slots, tokens, positions = self._blank(self._together, width)
        targets = np.zeros_like(tokens)
        for row, (slot, index) in enumerate(some):
            context, continuation = pairs[index]
            count = len(continuation)
            slots[row] = slot
            tokens[row, :count] = [context[-1], *continuation[:-1]]
            positions[row, :count] = len(context) - 1 + np.arange(count)
            targets[row, :count] = continuation
        log, greedy = jax.device_get(
            programs.continuations(self._models, caches, slots, tokens, positions, targets, layout=self.layout)
        )
        return [(log[row, : len(pairs[i][1])], greedy[row, : len(pairs[i][1])]) for row, (_, i) in enumerate(some)]

    def _check(self, name: str, given: int, more: int) -> None:
        if not given:
            raise BadInput(f"{name}: is empty; give at least one token, such as the BOS")
        if more < 0 or given + more > self.length:
            raise BadInput(
                f"{name}: {given} tokens and {more} new ones exceed the {self.length} that a slot holds; shorten it, or"
                " give more with config.length"
            )

    def _common_prefix(self, prompts: Sequence[np.ndarray]) -> np.ndarray:
        """Returns the prompts' common prefix, short of the shortest's last token; empty if under `_SHARED` tokens."""
        nothing = np.zeros(0, np.int32)
        if not self._share_prefix or len(prompts) < 2:
            return nothing
        first = np.asarray(prompts[0], np.int32)
        count = min(map(len, prompts)) - 1
        for other in prompts[1:]:
            differ = np.flatnonzero(first[:count] != np.asarray(other[:count], np.int32))
            count = int(differ[0]) if differ.size else count
        return first[:count] if count >= _SHARED else nothing

    def _stops(self) -> np.ndarray:
        return np.array([*self._stop_ids, *[-1] * (_STOP_IDS - len(self._stop_ids))], np.int32)

    def _blank(self, rows: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Makes slots, tokens and positions of padding rows, whose writes are dropped."""
        slots = np.full(rows, self.slots, np.int32)
        tokens = np.zeros((rows, width), np.int32)
        return slots, tokens, np.full((rows, width), self.length, np.int32)

    def _read(
        self, caches: tuple[Cache, ...], rows: Sequence[tuple[int, np.ndarray, int]], whole: bool = False
    ) -> tuple[tuple[Cache, ...], tuple[jax.Array, ...]]:
        """Prefills slots, chunk by chunk.

        Args:
          caches: the caches of all slots, one for each model.
          rows: for each row its slot, its tokens, and the index of the first token to read, the same for all rows. At
            most S rows if `whole`, else P.
          whole: whether row i goes to slot i and all other slots are free.

        Returns:
          The caches, and each model's last layer's output for every row's last token, [S, D] or [P, D].
        """
        together = self._reading.rows(whole)
        last = (jnp.zeros((together, self.layout.config.hidden_size), self._dtype),) * self._count
        done = start = rows[0][2]
        ends = np.full(together, -1, np.int32)
        ends[: len(rows)] = [len(tokens) - 1 for _, tokens, _ in rows]
        for width in self._reading.widths(max(len(tokens) for _, tokens, _ in rows) - start):
            slots, chunk, positions = self._blank(together, width)
            for row, (slot, tokens, _) in enumerate(rows):
                piece = tokens[done : done + width]
                slots[row] = slot
                chunk[row, : len(piece)] = piece
                positions[row, : len(piece)] = done + np.arange(len(piece))
                self.counts.prompt_tokens += len(piece)
            caches, last = programs.read_chunk(
                self._models, caches, last, slots, chunk, positions, ends,
                layout=self.layout, fresh=done == 0, whole=whole,
            )  # fmt: skip
            done += width
        return caches, last

    def _admit(
        self,
        state: State,
        chosen: Sequence[tuple[int, Request]],
        whole: bool,
        shared: tuple[Cache, ...] | None,
        prefix: int,
        kind: Kind,
    ) -> State:
        """Prefills some prompts, into all slots if `whole`, and starts their answers."""
        rows = self._reading.rows(whole)
        slots, _, _ = self._blank(rows, 1)
        slots[: len(chosen)] = [slot for slot, _ in chosen]
        caches = state.caches if shared is None else programs.spread(state.caches, shared, slots)
        caches, last = self._read(caches, [(slot, request.tokens, prefix) for slot, request in chosen], whole)
        missing = rows - len(chosen)
        vocabulary = self.layout.vocab_rows if kind.penalties else 0
        seen = np.zeros((rows, vocabulary), bool)
        if kind.penalties:
            for row, (_, request) in enumerate(chosen):
                seen[row, request.tokens] = True
        return programs.begin(
            self._models,
            dataclasses.replace(state, caches=caches),
            last,
            slots,
            np.array([*(len(request.tokens) for _, request in chosen), *[0] * missing], np.int32),
            np.array([*(request.max_new_tokens for _, request in chosen), *[0] * missing], np.int32),
            seen,
            Settings.of([*(request.sampling for _, request in chosen), *[Sampling()] * missing]),
            self._stops(),
            layout=self.layout,
            kind=kind,
        )
