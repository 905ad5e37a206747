"""Subprocess of `benchmark/few_shot.py`: trains random weights, one step for each line of standard input.

python -m clinmerge_jax.benchmark.few_shot_steps JOB.json
"""

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clinmerge_jax.benchmark.measuring.device import product_flops
from clinmerge_jax.data.documents import Encoded
from clinmerge_jax.data.packing import pack
from clinmerge_jax.llama.attention import Use, resolve
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.lora import LoraSettings
from clinmerge_jax.llama.parameters import init_params
from clinmerge_jax.parallel.layout import one_device
from clinmerge_jax.training.batching import Batching
from clinmerge_jax.training.optimizer import OptimizerSettings
from clinmerge_jax.training.run import Run
from clinmerge_jax.training.step import StepSettings


def main() -> None:
    """Trains as the job file says; its fields are those of third_party/peers/few_shot_with_transformers.py."""
    parser = argparse.ArgumentParser()
    parser.add_argument("job", type=pathlib.Path)
    train(json.loads(parser.parse_args().job.read_bytes()))


def train(job: Mapping[str, Any]) -> None:
    """Compiles and times a first step of each shape, then takes and times a step for each line of standard input."""
    llama = LlamaConfig.from_json(job["model"], "config.model")
    layout = one_device(llama)
    steps = len(job["examples"]) // job["batch_size"]
    settings = StepSettings(
        OptimizerSettings(weight_decay=0.01),
        steps,
        lora=LoraSettings(job["rank"], 2.0 * job["rank"]) if job["rank"] else None,
        dtype=jnp.float32,
        attention=resolve("auto", Use.SEQUENCES, llama, jnp.float32, layout.device),
    )
    encoded = [
        Encoded(np.array(one["tokens"], np.int32), np.arange(len(one["tokens"])) >= one["prompt"])
        for one in job["examples"]
    ]
    sequences, _ = pack(encoded, job["length"])
    training = Run(layout, settings, sequences, Batching(job["batch_size"], length=job["length"]))
    print(training.planned, file=sys.stderr)
    make = jax.jit(lambda: init_params(llama, jax.random.key(0)), out_shardings=layout.shardings())
    state = jax.block_until_ready(training.begin(make()))
    batches = list(training.loader())
    first: dict[tuple[int, ...], tuple[int, float]] = {}
    for number, batch in enumerate(batches):
        if batch.tokens.shape not in first:
            start = time.perf_counter()
            jax.block_until_ready(training.take(jax.tree.map(jnp.copy, state), batch))
            first[batch.tokens.shape] = number, time.perf_counter() - start
    answer(first=dict(first.values()))
    for batch, _ in zip(batches, sys.stdin):
        start = time.perf_counter()
        state, metrics = training.take(state, batch)
        jax.block_until_ready((state, metrics))
        seconds = time.perf_counter() - start
        answer(
            seconds=seconds,
            loss=float(metrics.loss),
            computed=int(metrics.computed),
            product_flops=product_flops(job["product"], jnp.float32),
            peak_bytes=training.measures(metrics, seconds)["peak_bytes"],
        )


def answer(**values: Any) -> None:
    """Writes a line of JSON for the benchmark to read."""
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    main()
