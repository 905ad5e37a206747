"""Subprocess of `benchmark/train.py`: training steps with random weights, their time and memory.

python -m clinmerge_jax.benchmark.train_steps JOB.json RESULT.json
"""

import argparse
import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clinmerge_jax.benchmark.measuring.device import product_flops
from clinmerge_jax.command_line import refuse
from clinmerge_jax.data.documents import Encoded
from clinmerge_jax.data.sequences import Sequences, sequences_of
from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.attention import Use, resolve
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.lora import LoraSettings
from clinmerge_jax.llama.model import Remat
from clinmerge_jax.llama.parameters import init_params
from clinmerge_jax.parallel.layout import make_layout
from clinmerge_jax.parallel.mesh import MeshShape
from clinmerge_jax.training.batching import Batching
from clinmerge_jax.training.flops import peak_flops
from clinmerge_jax.training.optimizer import OptimizerSettings
from clinmerge_jax.training.run import Run
from clinmerge_jax.training.step import StepSettings


def main() -> None:
    """Trains as the job file says; it has the fields of third_party/peers/train_with_transformers.py and some more."""
    parser = argparse.ArgumentParser()
    parser.add_argument("job", type=pathlib.Path)
    parser.add_argument("result", type=pathlib.Path)
    given = parser.parse_args()
    try:
        result = train(json.loads(given.job.read_bytes()))
    except BadInput as error:
        refuse(str(error))
    given.result.write_text(json.dumps(result))


def train(job: Mapping[str, Any]) -> dict[str, float]:
    """Trains; returns seconds per step and of the first, which compiles, the speed of matrix products, and peak memory.

    Raises:
      BadInput: the mesh does not fit the model or the rows, or the attention kernel is not available.
    """
    llama = LlamaConfig.from_json(job["model"], "config.model")
    layout = make_layout(llama, MeshShape(**job["mesh"]))
    dtype = jnp.dtype(job["dtype"])
    settings = StepSettings(
        OptimizerSettings(weight_decay=0.01),
        job["steps"] + 1,
        lora=LoraSettings(job["rank"], 2.0 * job["rank"]) if job["rank"] else None,
        dtype=dtype,
        remat=Remat(job["remat"]),
        attention=resolve(job["attention"], Use.SEQUENCES, llama, dtype, layout.device),
    )
    training = Run(layout, settings, _full_rows(llama, job["rows"], job["tokens"]), Batching(job["rows"]))
    step = next(training.loader())
    peaks = [product_flops(job["product"], dtype)]
    stored = dtype if job["rank"] else jnp.float32
    make = jax.jit(lambda: init_params(llama, jax.random.key(0), stored), out_shardings=layout.shardings())
    state = jax.block_until_ready(training.begin(make()))
    seconds = []
    for count in (1, job["steps"]):
        start = time.perf_counter()
        for _ in range(count):
            state, metrics = training.take(state, step)
        loss = float(jax.block_until_ready((state, metrics))[1].loss)
        seconds.append((time.perf_counter() - start) / count)
    peaks.append(product_flops(job["product"], dtype))
    sheet = peak_flops(layout.device)
    return {
        "seconds": seconds[1],
        "first_seconds": seconds[0],
        "product_flops": max(peaks),
        "peak_bytes": training.measures(metrics, seconds[1])["peak_bytes"],
        "devices": layout.mesh.size,
        "loss": loss,
        **({} if sheet is None else {"sheet_flops": sheet}),
    }


def _full_rows(llama: LlamaConfig, rows: int, tokens: int) -> Sequences:
    """Rows of random tokens, of which all but the first are learned."""
    drawn = np.random.default_rng(0).integers(3, llama.vocab_size, (rows, tokens), np.int32)
    return sequences_of([[Encoded(row, np.arange(tokens) > 0)] for row in drawn])


if __name__ == "__main__":
    main()
