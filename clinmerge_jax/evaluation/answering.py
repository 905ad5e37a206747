"""Answers a task's questions with one model: by generation, or by the log-likelihood of each letter. T tokens."""

import dataclasses
import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from clinmerge_jax.checkpoint.adapters.lora import load_lora
from clinmerge_jax.checkpoint.parameters.params import llama_config, load_params
from clinmerge_jax.checkpoint.tokenizers.tokenizer import load_tokenizer, tokenizer_files
from clinmerge_jax.data.documents import check_vocabulary
from clinmerge_jax.errors import BadInput
from clinmerge_jax.evaluation.choices import likeliest
from clinmerge_jax.evaluation.systems import FIELD, System
from clinmerge_jax.generation.engine import Engine, Request, check_engine
from clinmerge_jax.generation.sampling import Sampling, seed_of
from clinmerge_jax.generation.stopping import cut, stop_ids, until
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.metrics.metric import Output
from clinmerge_jax.parallel.layout import Layout, make_layout
from clinmerge_jax.parallel.mesh import MeshShape
from clinmerge_jax.tasks.prompting import Prompt, Prompter
from clinmerge_jax.tasks.task import Item, Task
from clinmerge_jax.training.lora import merge_lora

GENERATED, LETTERS = "generated", "letters"
_DTYPES = ("", "float32", "bfloat16")
MAX_LENGTH = 4096  # tokens of a slot where the prompts are not known in advance
_SLACK = 32  # an answer may tokenize to more tokens when it is read back than were generated
_LENGTH_STEP = 64  # slot lengths are rounded up to a multiple, so tasks of similar length share programs


@dataclasses.dataclass(frozen=True)
class PreparedPrompts:
    """The questions of a cell as prompts for one model.

    Attributes:
      task: the task.
      items: its items.
      prompter: the prompter that made the prompts.
      prompts: one for each item.
      mode: GENERATED or LETTERS.
      length: T, the tokens that a slot must hold.
    """

    task: Task
    items: Sequence[Item]
    prompter: Prompter
    prompts: Sequence[Prompt]
    mode: str
    length: int

    @property
    def cut(self) -> int:
        """The number of items whose source was shortened."""
        return sum(prompt.cut for prompt in self.prompts)


def make_evaluators(systems: Sequence[System], config: ConfigDict) -> dict[System, "Evaluator"]:
    """Makes an `Evaluator` for each system with a checkpoint.

    Systems whose tokenizer files are the same share one tokenizer, because loading one takes most of a second.

    Raises:
      BadInput: as in `Evaluator`.
    """
    tokenizers: dict[str, Any] = {}
    made = {}
    for system in systems:
        if system.checkpoint is not None:
            digest = _tokenizer_digest(system.checkpoint.path)
            made[system] = Evaluator(system, config, tokenizers.get(digest))
            tokenizers[digest] = made[system].tokenizer
    return made


def _tokenizer_digest(folder: pathlib.Path) -> str:
    """SHA-256 of everything that `load_tokenizer` reads."""
    files = [*tokenizer_files(folder).values(), folder / "config.json", *folder.glob("additional_chat_templates/*")]
    contents = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()}
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()


class Evaluator:
    """Prepares the prompts of one system and answers them.

    The constructor reads the checkpoint's tokenizer and config; `load` reads its weights and builds the engine.

    Args:
      system: the system; it must have a checkpoint.
      config: the job's config; has dtype, slots, int8_weights, int8_cache, attention, mesh, length, too_long,
        max_new_tokens and the sampling fields.
      tokenizer: the checkpoint's tokenizer, if it is loaded already.

    Raises:
      BadInput: the checkpoint is not a Llama with a tokenizer, or a config field is wrong.
    """

    def __init__(self, system: System, config: ConfigDict, tokenizer: Any = None):
        if config.dtype not in _DTYPES:
            raise BadInput(f"config.dtype: {config.dtype!r} is unknown; give float32, bfloat16, or leave it empty")
        if config.too_long not in ("refuse", "cut"):
            raise BadInput(f"config.too_long: {config.too_long!r} is unknown; give refuse or cut")
        self.system = system
        self._config = config
        self.tokenizer = load_tokenizer(system.checkpoint.path, FIELD) if tokenizer is None else tokenizer
        self.llama: LlamaConfig = llama_config(system.checkpoint)
        self._stop_ids = stop_ids(system.checkpoint)
        self._context = min(config.length or self.llama.max_position_embeddings, self.llama.max_position_embeddings)
        self._sampling = Sampling(
            float(config.temperature), config.top_k, float(config.top_p), 0.0, float(config.repetition_penalty), 0
        )
        self._layout: Layout | None = None
        self._engines: list[Engine] = []  # one, except where items are shared out between models

    @property
    def _dtype(self) -> Any:
        return np.dtype(self._config.dtype or self.system.checkpoint.tensors["model.embed_tokens.weight"].dtype)

    def ask(self, task: Task, items: Sequence[Item], shots: Sequence[Item], chat: bool, mode: str) -> PreparedPrompts:
        """Makes the prompts of a task's items and checks that an engine can hold them.

        Raises:
          BadInput: a prompt does not fit, a token id exceeds the vocabulary, or the engine cannot be built.
        """
        new = self.new_tokens(task) if mode == GENERATED else 0
        most = self._context - new
        if most < 1:
            raise BadInput(
                f"config.max_new_tokens: {new} for task {task.name} leaves no room for a prompt in the context of"
                f" {self._context} tokens; give fewer"
            )
        prompter = Prompter(task, self.tokenizer, chat, shots, most, self._config.too_long == "cut")
        prompts = [prompter.prompt(item, mode == LETTERS) for item in items]
        check_vocabulary((prompt.tokens for prompt in prompts), self.llama.vocab_size, FIELD, self.system.name)
        needed = max(
            len(prompt.tokens) + max((len(answer) for answer in prompt.answers), default=new) for prompt in prompts
        )
        for item in items:
            if item.turns:  # a later turn's prompt holds the earlier answers, which are not known yet
                last = prompter.follow_up(item, [""] * len(item.turns))
                needed = max(needed, len(last) + (len(item.turns) + 1) * new + _SLACK)
        if needed > self._context:
            raise BadInput(
                f"config.max_new_tokens: the turns of task {task.name} take {needed} tokens with this many for each"
                f" answer, but the context has {self._context}; give fewer"
            )
        length = min(-(-needed // _LENGTH_STEP) * _LENGTH_STEP, self._context)
        check_engine(
            self._shape(), self._config.slots, length, self._stop_ids, self._cache_dtype, self._config.attention
        )
        return PreparedPrompts(task, items, prompter, prompts, mode, length)

    def new_tokens(self, task: Task) -> int:
        """The maximum number of tokens of an answer."""
        return self._config.max_new_tokens or task.max_new_tokens

    @property
    def _cache_dtype(self) -> np.dtype:
        return np.dtype(np.int8) if self._config.int8_cache else self._dtype

    def _shape(self) -> Layout:
        if self._layout is None:
            self._layout = make_layout(self.llama, MeshShape(**self._config.mesh))
        return self._layout

    def load(self, length: int) -> None:
        """Loads the weights, with the adapter merged into them, onto the mesh.

        Args:
          length: slot length of the first engine; `answers` makes engines of other lengths as it needs them.
        """
        layout = self._shape()
        composition, weights = self.system.composition, (1.0,)
        if composition is not None:
            params, weights = composition.params(layout, self._dtype), composition.weights
        else:
            params = [load_params(self.system.checkpoint, self._dtype, mesh=layout.mesh)[1]]
        if self.system.adapter is not None:
            lora, adapter = load_lora(str(self.system.adapter.path), FIELD, self.llama)
            params = [merge_lora(params[0], adapter, lora)]
        together = [params] if len(params) == len(weights) else [[one] for one in params]
        self._engines = [
            Engine(
                layout,
                some,
                weights=weights,
                slots=self._config.slots,
                length=length,
                stop_ids=self._stop_ids,
                int8_weights=self._config.int8_weights,
                int8_cache=self._config.int8_cache,
                attention=self._config.attention,
            )
            for some in together
        ]

    @property
    def longest(self) -> int:
        """Slot length where prompts are not known in advance: config.length, else the context up to MAX_LENGTH."""
        return min(self._context, self._config.length or MAX_LENGTH)

    def engine(self, length: int, with_eos: bool = False) -> Engine:
        """The loaded model as an engine whose slots hold `length` tokens of prompt and answer.

        Args:
          length: tokens of a slot.
          with_eos: whether the tokenizer's end-of-sequence token ends an answer too, whatever generation_config.json
            says.

        Raises:
          BadInput: items are shared out between several models.
        """
        if len(self._engines) > 1:
            raise BadInput(f"{FIELD}: {self.system.name} is several models; lm-eval asks one; leave it out")
        engine, eos = self._engines[0].of_length(length), self.tokenizer.eos_token_id
        return engine.stopping_at(eos) if with_eos and eos is not None else engine

    def unload(self) -> None:
        """Releases the weights."""
        self._engines = []

    def answers(
        self, asked: PreparedPrompts, seed: int, progress: Callable[[int], None]
    ) -> tuple[list[Output], dict[str, float | int]]:
        """Answers the questions.

        Args:
          asked: the prompts, from `ask`.
          seed: seed of the sampling.
          progress: called with the number of items done since the last call.

        Returns:
          The answers in the items' order, and figures about the work: items, items cut, tokens, seconds.
        """
        engines = [one.of_length(asked.length) for one in self._engines]
        start, before = time.perf_counter(), [dataclasses.replace(engine.counts) for engine in engines]
        outputs: list[Any] = [None] * len(asked.items)
        composition = self.system.composition
        chosen = [0] * len(outputs) if composition is None else composition.answerers([one.id for one in asked.items])
        for number, engine in enumerate(engines):
            places = [place for place, answerer in enumerate(chosen) if answerer == number]
            some = dataclasses.replace(
                asked, items=[asked.items[i] for i in places], prompts=[asked.prompts[i] for i in places]
            )
            if asked.mode == LETTERS:
                found = _by_letters(engine, some.prompts, progress)
            else:
                found = self._generated(engine, some, seed, progress)
            for place, output in zip(places, found):
                outputs[place] = output
        counted = list(zip(engines, before))
        about = {
            "items": len(outputs),
            "cut": asked.cut,
            "prompt_tokens": sum(engine.counts.prompt_tokens - was.prompt_tokens for engine, was in counted),
            "new_tokens": sum(engine.counts.new_tokens - was.new_tokens for engine, was in counted),
            "seconds": round(time.perf_counter() - start, 2),
        }
        return outputs, about

    def _generated(
        self, engine: Engine, asked: PreparedPrompts, seed: int, progress: Callable[[int], None]
    ) -> list[Output]:
        outputs = self._turn(
            engine, asked.task, asked.items, [prompt.tokens for prompt in asked.prompts], seed, progress
        )
        turns = max((len(item.turns) for item in asked.items), default=0)
        for turn in range(turns):
            later = [index for index, item in enumerate(asked.items) if len(item.turns) > turn]
            so_far = [(*outputs[index].earlier, outputs[index].text) for index in later]
            items = [asked.items[index] for index in later]
            prompts = [asked.prompter.follow_up(item, told) for item, told in zip(items, so_far)]
            found = self._turn(engine, asked.task, items, prompts, seed + turn + 1, lambda _: None)
            for index, told, output in zip(later, so_far, found):
                outputs[index] = dataclasses.replace(output, earlier=told)
        return outputs

    def _turn(
        self,
        engine: Engine,
        task: Task,
        items: Sequence[Item],
        prompts: Sequence[np.ndarray],
        seed: int,
        progress: Callable[[int], None],
    ) -> list[Output]:
        ends = until(task.stop, self.tokenizer)
        requests = [
            Request(
                tokens, self.new_tokens(task), dataclasses.replace(self._sampling, seed=seed_of(seed, item.id)), ends
            )
            for item, tokens in zip(items, prompts, strict=True)
        ]
        outputs: list[Any] = [None] * len(requests)
        for index, found in engine.generate(requests):
            text, _ = cut(self.tokenizer.decode(found.tokens, skip_special_tokens=True), task.stop)
            outputs[index] = Output(text.strip(), found.finished)
            progress(1)
        return outputs


def _by_letters(engine: Engine, prompts: Sequence[Prompt], progress: Callable[[int], None]) -> list[Output]:
    outputs = []
    for start in range(0, len(prompts), engine.slots):
        some = prompts[start : start + engine.slots]
        found = iter(engine.score([(prompt.tokens, answer) for prompt in some for answer in prompt.answers]))
        for prompt in some:
            outputs.append(Output(likeliest([float(next(found)[0].sum()) for _ in prompt.answers])))
        progress(len(some))
    return outputs
