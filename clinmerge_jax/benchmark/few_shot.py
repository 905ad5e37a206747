"""Benchmarks few-shot fine-tuning: one epoch, in which this package and transformers take their steps in turn.

Example lengths are drawn with a fixed seed so that word counts are distributed as in MTS-Dialog's training set
(dialogues: mean 106, 95th percentile 339, at most 1,509; sections: mean 41, 95th percentile 150, at most 1,020): the
logarithms are normal with means 4.20 and 2.67, standard deviations 0.96 and 1.45, correlation 0.82. A word counts as
1.35 tokens; the prompt has 60 more for instruction and chat template, the answer one more for the end-of-turn token.
The prompt of an example that is longer than a row is cut. Tokens and weights are random.

The floor is the operations that tokens other than padding need (the product with the vocabulary for answers only), at
the speed of a product of two matrices in the same repeat, the best of both programs.
"""

import contextlib
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from clinmerge_jax.benchmark.measuring import measure
from clinmerge_jax.benchmark.train import has_packages
from clinmerge_jax.data.documents import Encoded
from clinmerge_jax.data.loader import order
from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.report.tables import table
from clinmerge_jax.training.flops import step_flops

_PEER_RUNNER = pathlib.Path(__file__).parents[2] / "third_party" / "peers" / "few_shot_with_transformers.py"
_OURS, _PEER, _FLOOR = "clinmerge_jax", "transformers", "floor"
_TOKENS_A_WORD, _INSTRUCTION = 1.35, 60
_LONGEST_DIALOGUE, _LONGEST_SECTION = 1509, 1020  # words


def run(config: ConfigDict) -> None:
    """Runs the benchmark; see configs/benchmark.py for its fields. Only the training processes use the devices."""
    llama = LlamaConfig.from_json(config.model.to_dict(), "config.model")
    measure.check_counts(config, "repeats")
    if not config.weights or not set(config.weights) <= {"full", "lora"}:
        raise BadInput(f"config.weights: {config.weights}; give full, lora or both")
    measure.check_counts(config, "shots", "batch_size", "rank", "product")
    if config.shots % config.batch_size:
        raise BadInput(
            f"config.shots: {config.shots} is not a multiple of the batch size; give a multiple of {config.batch_size}"
        )
    if not _INSTRUCTION < config.length <= llama.max_position_embeddings:
        raise BadInput(
            f"config.length: is {config.length}; give over {_INSTRUCTION}, up to {llama.max_position_embeddings}"
        )
    python = config.peer_python or sys.executable
    if not has_packages(python, "torch", "transformers", "peft"):
        raise BadInput(f"config.peer_python: {python} has no torch, transformers and PEFT; name one that has them")
    commands = {
        _OURS: [sys.executable, "-m", "clinmerge_jax.benchmark.few_shot_steps"],
        _PEER: [python, str(_PEER_RUNNER)],
    }
    examples = draw_examples(config.shots, config.length, llama.vocab_size)
    place = measure.place_with_space(config.output, 1e6)
    measured: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="few_shot-", dir=place) as temporary:
        for repeat in range(config.repeats):
            for weights in config.weights:
                job = _job(config, examples, weights)
                for row, record in _epoch(job, commands, llama, examples, pathlib.Path(temporary)).items():
                    measured.setdefault(f"{weights}: {row}", []).append(record)
                    logging.info("repeat %d, %s: %s: %s", repeat + 1, weights, row, record)
    sizes = [len(example.tokens) for example in examples]
    facts = {name: config[name] for name in ("shots", "batch_size", "length", "rank")}
    measure.record(place / "few_shot.json", measured, sizes=sizes, **facts)
    print(_table(measured))
    print(
        f"{config.repeats} repeats of an epoch of {config.shots} examples, {sum(sizes):,} tokens, batch"
        f" {config.batch_size}, in float32, the two programs' steps in turn. Floor: the operations that tokens need"
        f" which are not padding, at the speed of a product of two matrices of {config.product} x {config.product}."
    )
    print(f"\nThe figures of every repeat are in {place / 'few_shot.json'}.")


def draw_examples(count: int, length: int, vocabulary: int) -> list[Encoded]:
    """Examples of random tokens whose lengths follow those of MTS-Dialog, as the module's docstring says.

    Args:
      count: number of examples.
      length: the most tokens of an example.
      vocabulary: its size; token ids are drawn from 3 up to it.
    """
    rng = np.random.default_rng(0)
    one, other = rng.standard_normal((2, count))
    dialogue = np.minimum(np.exp(4.20 + 0.96 * one), _LONGEST_DIALOGUE)
    section = np.minimum(np.exp(2.67 + 1.45 * (0.82 * one + (1 - 0.82**2) ** 0.5 * other)), _LONGEST_SECTION)
    examples = []
    for asked, answered in zip(np.ceil(_TOKENS_A_WORD * dialogue), np.ceil(_TOKENS_A_WORD * section)):
        answer = min(int(answered) + 1, length - _INSTRUCTION)
        prompt = min(int(asked) + _INSTRUCTION, length - answer)
        tokens = rng.integers(3, vocabulary, prompt + answer, dtype=np.int32)
        examples.append(Encoded(tokens, np.arange(prompt + answer) >= prompt))
    return examples


def _job(config: ConfigDict, examples: Sequence[Encoded], weights: str) -> dict[str, Any]:
    """The job of both programs: settings, and the examples in the order of training."""
    numbers = order(len(examples))
    return {
        "model": config.model.to_dict(),
        "rank": config.rank if weights == "lora" else 0,
        "batch_size": config.batch_size,
        "length": config.length,
        "product": config.product,
        "examples": [
            {"tokens": one.tokens.tolist(), "prompt": int(np.argmax(one.targets))}
            for one in (examples[numbers[place]] for place in range(len(examples)))
        ],
    }


class _Worker:
    """A process that takes a step for each line written to it, and answers with a line of JSON."""

    def __init__(self, command: Sequence[str], said: pathlib.Path):
        self._command, self._said = command, said
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said.open("w"), text=True
        )

    def answer(self) -> dict[str, Any]:
        """The next answer; raises RuntimeError if the process has ended."""
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise RuntimeError(f"{' '.join(self._command)} ended:\n{self._said.read_text()[-2000:]}")
        return json.loads(line)

    def step(self) -> dict[str, float]:
        """Has the process take one step; returns its figures."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self.answer()

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


@contextlib.contextmanager
def _started(command: Sequence[str], job: pathlib.Path, said: pathlib.Path) -> Iterator[_Worker]:
    worker = _Worker([*command, str(job)], said)
    try:
        yield worker
    finally:
        worker.close()


def _epoch(
    job: Mapping[str, Any],
    commands: Mapping[str, Sequence[str]],
    llama: LlamaConfig,
    examples: Sequence[Encoded],
    work: pathlib.Path,
) -> dict[str, dict[str, float]]:
    """Figures of one epoch: of both programs, whose steps take turns, and of the floor."""
    (work / "job.json").write_text(json.dumps(job))
    with contextlib.ExitStack() as stack:
        workers = {
            name: stack.enter_context(_started(command, work / "job.json", work / f"{name}.err"))
            for name, command in commands.items()
        }
        ready = {name: worker.answer() for name, worker in workers.items()}
        steps: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
        for number in range(len(examples) // job["batch_size"]):
            for name in list(workers)[:: 1 if number % 2 else -1]:
                steps[name].append(workers[name].step())
    found = {}
    for name, answers in steps.items():
        found[name] = {
            "seconds": sum(answer["seconds"] for answer in answers),
            "not_padding": sum(len(one.tokens) for one in examples) / sum(answer["computed"] for answer in answers),
            "peak_bytes": max(answer["peak_bytes"] for answer in answers),
            "compile_seconds": sum(
                seconds - answers[int(number)]["seconds"] for number, seconds in ready[name]["first"].items()
            ),
            "programs": len(ready[name]["first"]),
            "last_loss": answers[-1]["loss"],
        }
    sizes = [len(one.tokens) for one in examples]
    flops = step_flops(
        llama, sum(sizes), sum(size * (size + 1) // 2 for size in sizes), frozen=job["rank"] > 0,
        predicted=sum(int(one.targets.sum()) for one in examples),
    )  # fmt: skip
    peak = max(answer["product_flops"] for answers in steps.values() for answer in answers)
    return {_FLOOR: {"seconds": flops / peak, "product_flops": peak}, **found}


def _table(measured: measure.Runs) -> str:
    """Table of medians; a ratio is the median of the ratios within each repeat."""
    rows = []
    for name, runs in measured.items():
        case, _, program = name.partition(": ")
        floors, ours = measured[f"{case}: {_FLOOR}"], measured[f"{case}: {_OURS}"]
        over = [run["seconds"] / floor["seconds"] for run, floor in zip(runs, floors, strict=True)]
        ratios = [run["seconds"] / one["seconds"] for run, one in zip(runs, ours, strict=True)]
        seconds = statistics.median(run["seconds"] for run in runs)
        if program == _FLOOR:
            rows.append([name, f"{seconds:.1f}", "1.00", "", "", "", ""])
            continue
        rows.append([
            name,
            f"{seconds:.1f}",
            f"{statistics.median(over):.2f}",
            f"{statistics.median(ratios):.2f}" if program == _PEER else "",
            f"{runs[0]['not_padding']:.1%}",
            f"{statistics.median(run['compile_seconds'] for run in runs):.1f} ({runs[0]['programs']})",
            f"{max(run['peak_bytes'] for run in runs) / 1e9:.2f}",
        ])  # fmt: skip
    header = ["an epoch", "seconds", "over the floor", "it / clinmerge_jax", "not padding"]
    return table([*header, "compilation, seconds (programs)", "peak resident GB"], rows)
