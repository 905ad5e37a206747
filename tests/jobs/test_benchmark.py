"""The merge benchmark measures what it says, here on a small model."""

import json

import pytest
from support import run_process

from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.safetensors import read_tensor
from clinmerge_jax.jobs.benchmark import make_checkpoint
from clinmerge_jax.llama.config import LlamaConfig
from configs import benchmark

SMALL = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 8}


def test_made_checkpoints_are_siblings(tmp_path):
    raw = {**benchmark.get_config().model.to_dict(), **SMALL}
    llama = LlamaConfig.from_json(raw, "config.model")
    for name, drift in (("one", 0.0), ("two", 0.03)):
        make_checkpoint(tmp_path / name, raw, llama, drift)
    one, two = (open_checkpoint(str(tmp_path / name), name) for name in ("one", "two"))
    a, b = (read_tensor(c.tensors["model.embed_tokens.weight"]).astype("float64") for c in (one, two))
    distance = (((a - b) ** 2).sum() / (a**2).sum()) ** 0.5
    assert 0.025 < distance < 0.035


def test_the_benchmark_reports_time_over_the_floor_and_memory(repository, tmp_path):
    mine = tmp_path / "bench" / "instruct" / "model.safetensors"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    fields = [f"--config.model.{key}={value}" for key, value in SMALL.items()]
    options = [
        "--config=configs/benchmark.py:merge",
        "--config.repeats=1",
        f"--config.output={tmp_path / 'bench'}",
        "--config.methods=('slerp',)",
    ]
    process = run_process(repository, *options, *fields)
    assert process.returncode == 0, process.stderr
    result = json.loads((tmp_path / "bench" / "merge.json").read_text())
    (ours,) = result["measured"]["clinmerge_jax slerp"]
    assert ours["seconds"] > 0 and ours["peak_bytes"] > 10**7
    assert "over the floor" in process.stdout
    assert sorted(path.name for path in (tmp_path / "bench").iterdir()) == ["instruct", "merge.json"]
    assert mine.read_text() == "mine"


@pytest.mark.slow
def test_checkpoints_of_3_gb_merge_in_less_than_1_5_gb(repository, tmp_path):
    options = ["--config=configs/benchmark.py:merge", "--config.repeats=1", f"--config.output={tmp_path / 'bench'}"]
    process = run_process(repository, *options)
    assert process.returncode == 0, process.stderr
    measured = json.loads((tmp_path / "bench" / "merge.json").read_text())["measured"]
    for method in ("linear", "slerp"):
        assert measured[f"clinmerge_jax {method}"][0]["peak_bytes"] < 1.5e9
