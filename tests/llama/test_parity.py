"""Logits and checkpoints of small random Llamas, Mistrals and Qwens against transformers' own models.

Each configuration is drawn from a seed, written by transformers, read by this package's loader, run by
both in float32 on right-padded rows, and written back. `pytest -s` shows the largest difference.
"""

import dataclasses
import functools
import json
import pathlib
import random
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from support import in_every_run

from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.output import OutputFolder, OutputState
from clinmerge_jax.checkpoint.parameters.params import load_params, save_params
from clinmerge_jax.generation.engine import Engine, Request
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.model import forward
from clinmerge_jax.llama.parameters import Params
from clinmerge_jax.parallel.layout import one_device

CONFIGURATIONS = {"llama": 64, "mistral": 24, "qwen2": 24, "qwen3": 8}
CLASSES = {
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
}
EVERY = 12  # of a family's configurations, every twelfth is tested in every run, the others with --all
LOGIT_TOLERANCE = 2e-5
TIE = 1e-4  # logits so close are taken for equal: either may be the largest

# Each list is dealt out in turn and shuffled with a seed of its own, so that every value occurs.
# Query heads and key-value heads: odd numbers, three key-value heads, groups of one to eight.
GROUPS = {1: (1,), 2: (1, 2), 3: (1, 3), 4: (2,), 5: (1, 5), 6: (2, 3), 7: (1, 7), 8: (1, 2, 4, 8)}
HEADS = tuple((queries, queries // group) for queries, groups in GROUPS.items() for group in groups)
HEAD_DIMS = (2, 4, 6, 8, 10, 16, 20, 34, None)  # None: not stated, so hidden_size / heads
ROPE_TYPES = ("default", "linear", "dynamic", "llama3")
THETAS = (10000.0, 500000.0, 777.7, 50.5, 10000, 3.0)
EPSILONS = (1e-6, 1e-5, 1e-3, 0.1)
VOCABULARIES = (7, 31, 64, 101, 257)
LAYERS = (1, 2, 3)
FLAGS = (False, True)
SPELLINGS = ("rope_parameters", "rope_scaling.type", "rope_scaling.rope_type")


@dataclasses.dataclass(frozen=True)
class Drawn:
    """One configuration: its family, transformers' arguments, and how its config.json spells RoPE."""

    family: str
    seed: int
    arguments: dict[str, Any]
    spelling: str

    def __str__(self) -> str:
        return f"{self.family} configuration {self.seed} ({self.spelling}): {self.arguments}"


@dataclasses.dataclass(frozen=True)
class Case:
    """A drawn configuration with what transformers computed and wrote, and what this package read."""

    drawn: Drawn
    folder: pathlib.Path
    tokens_BT: np.ndarray
    lengths_B: np.ndarray
    expected_logits: list[np.ndarray]  # torch's, per row, its real positions only
    config: LlamaConfig
    params: Params


def draw_configurations(family: str, count: int) -> list[Drawn]:
    def deal(name, values):
        dealt = [values[index % len(values)] for index in range(count)]
        random.Random(name).shuffle(dealt)
        return dealt

    columns = zip(
        deal("heads", HEADS),
        deal("head_dim", HEAD_DIMS),
        deal("rope", ROPE_TYPES),
        deal("theta", THETAS),
        deal("eps", EPSILONS),
        deal("vocab", VOCABULARIES),
        deal("layers", LAYERS),
        deal("tied", FLAGS),
        deal("attention_bias", FLAGS),
        deal("mlp_bias", FLAGS),
        deal("spelling", SPELLINGS),
        strict=True,
    )
    configurations = []
    for seed, column in enumerate(columns):
        (queries, keys), head_dim, rope_type, theta, eps, vocab, layers, tied, *biases, spelling = column
        rng = random.Random(seed)
        rope: dict[str, Any] = {"rope_type": rope_type, "rope_theta": theta}
        max_positions = rng.choice((11, 17, 24, 64, 2048))
        if rope_type != "default":
            rope["factor"] = rng.choice((1.0, 1.5, 2.0, 4.0, 8))
        if rope_type == "dynamic":
            # Most rows are longer than the limit, some are not.
            max_positions = rng.choice((8, 13, 24, 64))
            head_dim = 6 if head_dim == 2 else head_dim  # the stretch has head_dim - 2 in a denominator
        if rope_type == "llama3":
            # Short original contexts, so that kept, blended and divided frequencies all occur.
            original = rng.choice((8, 16, 48))
            max_positions = original * rng.choice((2, 8))
            low = rng.choice((0.5, 1.0))
            rope.update(low_freq_factor=low, high_freq_factor=low * 4, original_max_position_embeddings=original)
        # transformers asks for a multiple of the heads, and without head_dim the quotient must be even. A norm over
        # very few entries can be so ill-conditioned that torch's own float32 is off by more than the tolerance.
        even = 2 * -(-8 // queries)
        quotient = even + rng.choice((0, 2)) if head_dim is None else rng.randint(-(-16 // queries), 48 // queries)
        hidden = queries * quotient
        arguments = {
            "vocab_size": vocab,
            "hidden_size": hidden,
            "intermediate_size": rng.randint(5, 70),
            "num_hidden_layers": layers,
            "num_attention_heads": queries,
            "num_key_value_heads": keys,
            "head_dim": head_dim,
            "rms_norm_eps": eps,
            "max_position_embeddings": max_positions,
            "rope_parameters": rope,
            "tie_word_embeddings": tied,
            "attention_bias": biases[0],
            "mlp_bias": biases[1],
        }
        if family != "llama":
            del arguments["mlp_bias"]
            if head_dim is None and rope_type == "dynamic":
                arguments["head_dim"] = 6
            elif head_dim is None:
                del arguments["head_dim"]
        if family in ("mistral", "qwen2"):
            del arguments["attention_bias"]
        if family == "mistral":  # rows have 40 tokens at most, so none leaves the window
            arguments["sliding_window"] = rng.choice((None, 40, 4096)) if rope_type != "dynamic" else None
        configurations.append(Drawn(family, seed, arguments, spelling))
    return configurations


DRAWN = [drawn for family, count in CONFIGURATIONS.items() for drawn in draw_configurations(family, count)]
LLAMAS = [drawn for drawn in DRAWN if drawn.family == "llama"]


def build_torch_model(drawn: Drawn) -> transformers.PreTrainedModel:
    """A model whose every tensor is random, scaled so that activations and logits are of order one."""
    arguments = {**drawn.arguments, "rope_parameters": dict(drawn.arguments["rope_parameters"])}
    vocab = arguments["vocab_size"]
    config = CLASSES[drawn.family](**arguments, bos_token_id=vocab - 2, eos_token_id=vocab - 1)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(drawn.seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            values = torch.randn(tensor.shape, generator=generator)
            if name.endswith("norm.weight"):
                values = 1 + 0.3 * values
            elif name.endswith("bias"):
                values = 0.3 * values
            elif "embed_tokens" in name and not arguments["tie_word_embeddings"]:
                values = 0.7 * values
            else:
                values = 1.2 * values / tensor.shape[-1] ** 0.5
            tensor.copy_(values)
    return model


def spell_as_version_4(folder: pathlib.Path, key: str) -> None:
    """Rewrites config.json as transformers 4 wrote it, with `type` or `rope_type` inside rope_scaling."""
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    rope = raw.pop("rope_parameters")
    raw["rope_theta"] = rope.pop("rope_theta")
    rope_type = rope.pop("rope_type")
    raw["rope_scaling"] = None if rope_type == "default" else {key: rope_type, **rope}
    raw["torch_dtype"] = raw.pop("dtype")
    fits = raw.get("head_dim", 0) * raw["num_attention_heads"] == raw["hidden_size"]
    if fits and raw["model_type"] != "qwen3":  # whose default is 128
        del raw["head_dim"]
    path.write_text(json.dumps(raw))


def draw_rows(drawn: Drawn) -> tuple[np.ndarray, np.ndarray]:
    """Two or three rows of 5 to 40 tokens, padded on the right to the longest with a token that also occurs."""
    rng = np.random.default_rng(drawn.seed)
    lengths_B = rng.integers(5, 41, size=rng.integers(2, 4))
    tokens_BT = rng.integers(0, drawn.arguments["vocab_size"], (len(lengths_B), lengths_B.max()), dtype=np.int32)
    for row, length in zip(tokens_BT, lengths_B, strict=True):
        row[length:] = drawn.arguments["vocab_size"] - 1
    return tokens_BT, lengths_B


def torch_logits(model, tokens_BT: np.ndarray, lengths_B: np.ndarray) -> list[np.ndarray]:
    mask_BT = np.arange(tokens_BT.shape[1]) < lengths_B[:, None]
    with torch.inference_mode():
        ids, mask = torch.from_numpy(tokens_BT).long(), torch.from_numpy(mask_BT).long()
        logits_BTV = model(input_ids=ids, attention_mask=mask).logits.float().numpy()
    return [row[:length] for row, length in zip(logits_BTV, lengths_B, strict=True)]


def jax_logits(params: Params, config: LlamaConfig, tokens_BT: np.ndarray, lengths_B: np.ndarray) -> list[np.ndarray]:
    with jax.default_matmul_precision("highest"):
        logits_BTV = jax.jit(functools.partial(forward, config=config))(params, jnp.asarray(tokens_BT))
    logits_BTV = np.asarray(logits_BTV.astype(jnp.float32))
    return [row[:length] for row, length in zip(logits_BTV, lengths_B, strict=True)]


def save_again(case_config: LlamaConfig, params: Params, folder: pathlib.Path, target: pathlib.Path) -> None:
    source = open_checkpoint(str(folder), "test")
    output = OutputFolder(target, {"source": folder.name})
    assert output.open() is OutputState.FRESH
    # A limit of a few kilobytes splits the larger of these models into several files.
    save_params(params, case_config, source.config, output, carried=source.carried_files(), shard_bytes=50_000)
    output.commit({})


def stored_tensors(folder: pathlib.Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder as the safetensors library reads it."""
    tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors.update(safetensors.torch.load_file(path))
    return tensors


def same_bytes(left: torch.Tensor, right: torch.Tensor) -> bool:
    same_form = left.dtype == right.dtype and left.shape == right.shape
    return same_form and torch.equal(left.contiguous().view(torch.uint8), right.contiguous().view(torch.uint8))


@pytest.fixture(scope="module", autouse=True)
def quiet_torch():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def differences(figures):
    """Collects (largest difference, largest logit, configuration); the figures get a summary when all have run."""
    collected: list[tuple[float, float, Drawn]] = []
    yield collected
    if collected:
        worst, _, drawn = max(collected, key=lambda entry: entry[0])
        median = statistics.median(difference for difference, _, _ in collected)
        logits = sorted(largest for _, largest, _ in collected)
        figures.append(
            f"parity: {len(collected)} configurations, max |logit| {logits[0]:.2f} to {logits[-1]:.2f},"
            f" largest difference {worst:.3g}, median {median:.3g}; largest in {drawn}"
        )


def identifier(drawn: Drawn) -> str:
    return f"{drawn.family}-{drawn.seed}"


def often(drawn: Drawn) -> bool:
    return drawn.seed % EVERY == (drawn.family == "qwen2")


@pytest.fixture(scope="module", params=in_every_run(DRAWN, often, identifier))
def case(request, tmp_path_factory) -> Case:
    drawn = request.param
    folder = tmp_path_factory.mktemp("parity") / "model"
    model = build_torch_model(drawn)
    model.save_pretrained(folder)
    if drawn.spelling != "rope_parameters":
        spell_as_version_4(folder, drawn.spelling.split(".")[1])
    tokens_BT, lengths_B = draw_rows(drawn)
    expected = torch_logits(model, tokens_BT, lengths_B)
    config, params = load_params(open_checkpoint(str(folder), "test"))
    return Case(drawn, folder, tokens_BT, lengths_B, expected, config, params)


def test_the_drawn_configurations_cover_what_llama_checkpoints_vary():
    assert len(LLAMAS) >= 64
    stated = [drawn.arguments for drawn in LLAMAS]
    ropes = [arguments["rope_parameters"] for arguments in stated]
    assert {(a["num_attention_heads"], a["num_key_value_heads"]) for a in stated} == set(HEADS)
    assert {a["head_dim"] for a in stated} == set(HEAD_DIMS)
    assert {a["vocab_size"] for a in stated} == set(VOCABULARIES)
    assert {a["rms_norm_eps"] for a in stated} == set(EPSILONS)
    assert {rope["rope_theta"] for rope in ropes} == set(THETAS)
    pairs = {(rope["rope_type"], drawn.spelling) for rope, drawn in zip(ropes, LLAMAS, strict=True)}
    assert pairs == {(rope_type, spelling) for rope_type in ROPE_TYPES for spelling in SPELLINGS}
    flags = {(a["tie_word_embeddings"], a["attention_bias"], a["mlp_bias"]) for a in stated}
    assert len(flags) == 8
    beyond_limit = {
        bool(draw_rows(drawn)[1].max() > drawn.arguments["max_position_embeddings"])
        for drawn in LLAMAS
        if drawn.arguments["rope_parameters"]["rope_type"] == "dynamic"
    }
    assert beyond_limit == {False, True}


def test_logits_equal_those_of_transformers(case, differences):
    ours = jax_logits(case.params, case.config, case.tokens_BT, case.lengths_B)
    difference = max(np.abs(a - b).max() for a, b in zip(ours, case.expected_logits, strict=True))
    largest = max(np.abs(row).max() for row in case.expected_logits)
    assert 0.5 < largest < 12, "logits of this size would make the tolerance mean something else"
    differences.append((float(difference), float(largest), case.drawn))
    assert difference <= LOGIT_TOLERANCE, str(case.drawn)


def test_saved_tensors_are_those_read_bit_for_bit(case, tmp_path):
    # As arrays of the host; the test below saves from the device, which compiles a slice per shape.
    save_again(case.config, jax.device_get(case.params), case.folder, tmp_path / "again")
    before, after = stored_tensors(case.folder), stored_tensors(tmp_path / "again")
    assert list(before) and sorted(after) == sorted(before)
    assert not [name for name in before if not same_bytes(before[name], after[name])]
    saved_config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert saved_config == json.loads((case.folder / "config.json").read_text())


# Llamas have tests of their own (tests/generation).
GREEDY = [drawn for drawn in DRAWN if drawn.family != "llama"]


@pytest.mark.parametrize("case", in_every_run(GREEDY, lambda drawn: drawn.seed == 7, identifier), indirect=True)
def test_greedy_tokens_equal_those_of_transformers(case):
    prompt = case.tokens_BT[0, :3]
    new = min(8, case.config.max_position_embeddings - len(prompt))  # beyond, "dynamic" turns what is cached anew
    engine = Engine(one_device(case.config), case.params, slots=1, length=len(prompt) + new)
    ((_, answer),) = engine.generate([Request(prompt, new)])
    model = build_torch_model(case.drawn)
    model.generation_config.eos_token_id = None
    ids = torch.from_numpy(prompt).long()[None]
    told = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, pad_token_id=0,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    ours, theirs = answer.tokens.tolist(), told.sequences[0, len(prompt) :].tolist()
    assert len(ours) == len(theirs) == new
    parted = next((place for place in range(new) if ours[place] != theirs[place]), None)
    if parted is not None:  # what follows a tie may differ, and nothing else
        values, tokens = torch.topk(told.logits[parted][0], 2)
        assert values[0] - values[1] < TIE and ours[parted] == tokens[1], str(case.drawn)


@pytest.mark.parametrize("case", in_every_run(DRAWN[::6], often, identifier), indirect=True)
def test_transformers_reads_the_saved_folder_and_gives_the_same_logits(case, tmp_path):
    save_again(case.config, case.params, case.folder, tmp_path / "again")
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "again", attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    again = torch_logits(model.eval(), case.tokens_BT, case.lengths_B)
    for row, expected in zip(again, case.expected_logits, strict=True):
        np.testing.assert_array_equal(row, expected)


@pytest.mark.parametrize("seed", in_every_run((0, 9, 18, 27, 36, 45), lambda seed: seed == 0))
def test_bfloat16_is_as_close_to_float32_as_torch_is(seed, tmp_path, figures):
    """Both round the same bf16 weights' activations to bf16 along the way, in places that may differ.

    The measure is therefore the distance to the float32 logits of those same weights: root mean square at
    most 1.5 times torch's, largest at most twice torch's (a maximum over few values is noisier).
    """
    drawn = LLAMAS[seed]
    model = build_torch_model(drawn).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "model")
    tokens_BT, lengths_B = draw_rows(drawn)
    torch_bf16 = np.concatenate(torch_logits(model, tokens_BT, lengths_B))
    truth = np.concatenate(torch_logits(model.float(), tokens_BT, lengths_B))
    config, params = load_params(open_checkpoint(str(tmp_path / "model"), "test"))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    ours = np.concatenate(jax_logits(params, config, tokens_BT, lengths_B))

    our_error, torch_error = ours - truth, torch_bf16 - truth
    our_rms, torch_rms = np.sqrt(np.mean(our_error**2)), np.sqrt(np.mean(torch_error**2))
    our_max, torch_max = np.abs(our_error).max(), np.abs(torch_error).max()
    figures.append(
        f"bf16, configuration {seed}: rms {our_rms:.3g} (torch {torch_rms:.3g}),"
        f" max {our_max:.3g} (torch {torch_max:.3g})"
    )
    assert our_rms <= 1.5 * torch_rms
    assert our_max <= 2 * torch_max

    save_again(config, params, tmp_path / "model", tmp_path / "again")
    before, after = stored_tensors(tmp_path / "model"), stored_tensors(tmp_path / "again")
    assert sorted(after) == sorted(before)
    assert not [name for name in before if not same_bytes(before[name], after[name])]
