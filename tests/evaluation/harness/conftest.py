"""The miniature behind lm-eval twice: our engine, and lm-eval's own adapter for transformers."""

import functools
import json
import sys
import types

import datasets
import jax
import jax.numpy as jnp
import lm_eval.evaluator
import pytest
import torch
import transformers

from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.parameters.params import load_params
from clinmerge_jax.checkpoint.tokenizers.tokenizer import load_tokenizer
from clinmerge_jax.evaluation.harness.model import ClinmergeLM
from clinmerge_jax.generation.engine import Engine
from clinmerge_jax.generation.stopping import stop_ids
from clinmerge_jax.parallel.layout import one_device

MODEL = "miniature:instruct"
LENGTH = 64
ROWS = [
    {"question": "Which city is the capital of Peru?", "options": ["Lima", "Cairo"], "answer": 0},
    {"question": "Which color is a ripe lemon?", "options": ["blue", "yellow"], "answer": 1},
    {"question": "What do bees make?", "options": ["honey", "milk"], "answer": 0},
    {"question": "How many legs has a spider?", "options": ["six", "eight"], "answer": 1},
]
CHOICE = """
task: choice
output_type: multiple_choice
doc_to_text: "{{question}}\\nA. {{options[0]}}\\nB. {{options[1]}}\\nAnswer:"
doc_to_target: answer
doc_to_choice: ["A", "B"]
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
ANSWER = """
task: answer
output_type: generate_until
description: "Answer with one word."
doc_to_text: "{{question}}"
doc_to_target: "{{options[answer]}}"
generation_kwargs: {until: ["."], max_gen_toks: 6}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture(autouse=True)
def precise():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several would wait for each other over so small a model
    with jax.default_matmul_precision("highest"):
        yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def no_machine_report(monkeypatch):
    """lm-eval asks several programs about the machine, a second each time; nothing of it is kept."""
    monkeypatch.setattr(lm_eval.evaluator, "add_env_info", lambda results: None)


@pytest.fixture(scope="session")
def checkpoint():
    return open_checkpoint(MODEL, "model")


@pytest.fixture(scope="session")
def make_engine(checkpoint):
    """One device and one chunk, so that little is compiled."""
    llama, params = load_params(checkpoint, jnp.float32)
    return functools.partial(Engine, one_device(llama), params, slots=8, length=LENGTH, chunks=(LENGTH,))


@pytest.fixture(scope="session")
def ours(checkpoint, make_engine):
    tokenizer = load_tokenizer(checkpoint.path, "model")
    return ClinmergeLM(make_engine(stop_ids=stop_ids(checkpoint)), tokenizer)


@pytest.fixture(scope="session")
def their_class():
    """lm-eval's adapter imports accelerate, which only several processes need; a stand-in lets it be imported."""
    accelerate, inner = types.ModuleType("accelerate"), types.ModuleType("accelerate.utils")
    accelerate.Accelerator = accelerate.InitProcessGroupKwargs = accelerate.find_executable_batch_size = None
    inner.get_max_memory = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "accelerate", accelerate)
        patch.setitem(sys.modules, "accelerate.utils", inner)
        from lm_eval.models.huggingface import HFLM
    return HFLM


@pytest.fixture(scope="session")
def theirs(their_class, ours, checkpoint):
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint.path, dtype=torch.float32).eval()
    return their_class(pretrained=model, tokenizer=ours.tokenizer, max_length=LENGTH, batch_size=1)


@pytest.fixture
def task_files(tmp_path, monkeypatch):
    """Two tasks on one file of data."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    local = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, text in {"choice": CHOICE, "answer": ANSWER}.items():
        (folder / f"{name}.yaml").write_text(text + local)
    return folder
