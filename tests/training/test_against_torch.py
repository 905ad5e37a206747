"""A hundred steps of training a tiny Llama follow PyTorch: transformers, torch.optim.AdamW, and an adapter beside them.

`pytest -s` shows how far the two are apart.
"""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from support import in_every_run, tiny_config

from clinmerge_jax.data.batch import Batch
from clinmerge_jax.llama.lora import LoraSettings, targeted_rows
from clinmerge_jax.llama.parameters import init_params, iterate_params
from clinmerge_jax.training.lora import init_adapter
from clinmerge_jax.training.optimizer import OptimizerSettings
from clinmerge_jax.training.step import StepSettings, init_state, train_step

CONFIG = tiny_config(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_attention_heads=4,
    num_key_value_heads=2,
    attention_bias=True,
    mlp_bias=True,
)
STEPS, MICRO_BATCHES, ROWS, LENGTH = 100, 2, 3, 20
OPTIMIZER = OptimizerSettings(
    learning_rate=3e-3, final_share=0.1, warmup_steps=10, weight_decay=0.1, beta2=0.98, clip_norm=2.0
)
LORA = LoraSettings(rank=4, alpha=6.0, targets=("q_proj", "v_proj", "down_proj"), rank_stabilized=True)
KINDS = {
    "full": StepSettings(OPTIMIZER, STEPS, chunk=7),
    "lora": StepSettings(dataclasses.replace(OPTIMIZER, learning_rate=1e-2, clip_norm=1.0), STEPS, lora=LORA, chunk=7),
}


@pytest.fixture(scope="module", autouse=True)
def one_torch_thread():
    """Threads that wait for each other cost more than these products."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def steps():
    """Rows of 4 to 20 tokens, of which the first few are not learned."""
    rng = np.random.default_rng(0)

    def row():
        length = rng.integers(4, LENGTH + 1)
        tokens = (np.cumsum(rng.integers(1, 4, length)) + rng.integers(64)) % CONFIG.vocab_size
        return {"tokens": tokens.tolist(), "targets": (np.arange(length) >= rng.integers(1, 4)).tolist()}

    return [[[row() for _ in range(ROWS)] for _ in range(MICRO_BATCHES)] for _ in range(STEPS)]


def batch_of(step) -> Batch:
    shape = (MICRO_BATCHES, ROWS, LENGTH)
    arrays = {name: np.zeros(shape, np.int32) for name in ("tokens", "positions", "segments")}
    targets = np.zeros(shape, bool)
    for a, rows in enumerate(step):
        for b, row in enumerate(rows):
            length = len(row["tokens"])
            arrays["tokens"][a, b, :length] = row["tokens"]
            arrays["positions"][a, b, :length] = np.arange(length)
            arrays["segments"][a, b, :length] = 1
            targets[a, b, :length] = row["targets"]
    return Batch(targets=targets, **arrays)


def named(params) -> dict[str, np.ndarray]:
    """The tensors of Params by their Hugging Face names."""
    found = {}
    for row, leaf in iterate_params(params, CONFIG):
        values = np.asarray(leaf) if row.stacked else np.asarray(leaf)[None]
        found |= dict(zip(row.names(CONFIG), values, strict=True))
    return found


def named_factors(adapter) -> dict[str, np.ndarray]:
    found = {}
    for row in targeted_rows(CONFIG, LORA):
        node = adapter
        for key in row.path[:-1]:
            node = node[key]
        for layer, name in enumerate(row.names(CONFIG)):
            module = name.removesuffix(".weight")
            found |= {f"{module}.lora_{kind}": np.asarray(node[f"lora_{kind.lower()}"][layer]) for kind in "AB"}
    return found


def start(kind: str, dtype):
    """Params and, for an adapter, its factors, drawn in float32 so that both dtypes begin alike."""
    params = init_params(dataclasses.replace(CONFIG, initializer_range=0.15), jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), params)
    if not KINDS[kind].lora:
        return params, None
    adapter = init_adapter(CONFIG, LORA, jax.random.key(1))
    return params, jax.tree.map(lambda leaf: np.asarray(leaf, dtype), adapter)


def train_with_jax(kind: str, dtype: str, steps):
    params, adapter = start(kind, dtype)
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
        settings = dataclasses.replace(KINDS[kind], dtype=jnp.dtype(dtype))
        trained, frozen = (params, {}) if adapter is None else (adapter, params)
        state = init_state(jax.tree.map(jnp.asarray, trained), settings)
        frozen = jax.tree.map(jnp.asarray, frozen)
        seen = []
        for step in steps:
            state, metrics = train_step(state, frozen, batch_of(step), settings=settings, config=CONFIG)
            seen.append((metrics.loss, metrics.gradient_norm, metrics.learning_rate))
        figures = dict(zip(("losses", "norms", "rates"), np.array(seen, dtype).T, strict=True))
        names = named if adapter is None else named_factors
        return {**names(state.trained), **figures}


def torch_job(kind: str, dtype: str, by: str, steps):
    """What third_party/reference/train_with_torch.py is given: the job and the weights at the start."""
    params, adapter = start(kind, dtype)
    config = dataclasses.asdict(CONFIG)
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": config.pop("rope")["theta"]}
    settings = dataclasses.asdict(KINDS[kind].optimizer)
    lora = None if adapter is None else {"by": by, **dataclasses.asdict(LORA)}
    settings.pop("schedule"), settings.pop("first_moment_dtype")
    job = {"config": config, "dtype": dtype, "steps": steps, "optimizer": settings, "lora": lora}
    return job, {**named(params), **({} if adapter is None else named_factors(adapter))}


def train_in_torch(repository, kind: str, dtype: str, steps):
    sys.path.insert(0, str(repository / "third_party" / "reference"))
    try:
        import train_with_torch
    finally:
        sys.path.pop(0)
    return train_with_torch.train(*torch_job(kind, dtype, "hand", steps))


def differences(ours, theirs):
    """The largest difference of a loss, and of a weight relative to the largest of its tensor."""
    weights = [name for name in theirs if name not in ("losses", "norms", "rates")]
    assert set(ours) == set(theirs)
    worst = max(np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max() for name in weights)
    return float(np.abs(ours["losses"] - theirs["losses"]).max()), float(worst)


@pytest.mark.parametrize("kind", in_every_run(KINDS, lambda kind: kind == "lora"))
def test_float64_follows_torch(kind, repository, steps, figures):
    ours, theirs = train_with_jax(kind, "float64", steps), train_in_torch(repository, kind, "float64", steps)
    loss, weight = differences(ours, theirs)
    figures.append(
        f"training against torch, {kind}, float64, {STEPS} steps: losses from {ours['losses'][0]:.2f} to"
        f" {ours['losses'][-1]:.2f} within {loss:.1e}, weights within {weight:.1e} relative"
    )
    assert theirs["losses"][-10:].mean() < 0.95 * theirs["losses"][:10].mean()
    clipped = theirs["norms"] > KINDS[kind].optimizer.clip_norm
    assert clipped.any() and not clipped.all()
    np.testing.assert_allclose(ours["rates"], theirs["rates"], rtol=1e-12)
    np.testing.assert_allclose(ours["norms"], theirs["norms"], rtol=1e-7)
    assert loss < 1e-9 and weight < 1e-7


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_float32_follows_torch(kind, repository, steps, figures):
    ours, theirs = train_with_jax(kind, "float32", steps), train_in_torch(repository, kind, "float32", steps)
    loss, weight = differences(ours, theirs)
    figures.append(f"training against torch, {kind}, float32: losses within {loss:.1e}, weights within {weight:.1e}")
    assert loss < 1e-5


def test_peft_follows_too(repository, steps, tmp_path, figures):
    python = os.environ.get("CLINMERGE_PEFT_PYTHON")
    if not python:
        pytest.skip("CLINMERGE_PEFT_PYTHON does not name a Python with third_party/reference/requirements-peft.txt")
    job, weights = torch_job("lora", "float64", "peft", steps)
    (tmp_path / "job.json").write_text(json.dumps(job))
    np.savez(tmp_path / "weights.npz", **weights)
    script = repository / "third_party" / "reference" / "train_with_torch.py"
    files = [tmp_path / name for name in ("job.json", "weights.npz", "result.npz")]
    subprocess.run([python, script, *files], check=True, capture_output=True)
    with np.load(files[-1]) as result:
        loss, weight = differences(train_with_jax("lora", "float64", steps), dict(result))
    figures.append(f"training against PEFT, float64: losses within {loss:.1e}, weights within {weight:.1e} relative")
    assert loss < 1e-9 and weight < 1e-7
