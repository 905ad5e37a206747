"""LoRA adapters: how they are read, what they add, and what is refused."""

import json
import os
import shlex
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from support import BF16, write_llama

from clinmerge_jax.checkpoint.adapters.adapter import open_adapter, split_location
from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.formats.safetensors import read_tensor
from clinmerge_jax.errors import BadInput

FIELD = "config.adapter"
QUERY, KEY, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.k_proj", "model.layers.1.mlp.down_proj"
EMBED, HEAD = "model.embed_tokens", "lm_head"
PLAIN = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 6, "target_modules": ["q_proj"]}


def factors(module, rows, columns, rank=2, dtype=np.float32, seed=0):
    """Random factors for one matrix, by the names that PEFT gives them."""
    generator = np.random.default_rng((seed, *module.encode()))
    prefix = f"base_model.model.{module}.lora_"
    return {
        f"{prefix}A.weight": generator.normal(size=(rank, columns)).astype(dtype),
        f"{prefix}B.weight": generator.normal(size=(rows, rank)).astype(dtype),
    }


def write_adapter(folder, tensors=None, **config):
    """Writes an adapter folder; by default with factors of `QUERY` for `TINY`."""
    folder.mkdir(parents=True)
    fields = {key: value for key, value in {**PLAIN, **config}.items() if value is not ...}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    tensors = factors(QUERY, 8, 8) if tensors is None else tensors
    safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


def product(tensors, module):
    """B A in float64."""
    a, b = (tensors[f"base_model.model.{module}.lora_{kind}.weight"].astype(np.float64) for kind in "AB")
    return b @ a


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16])
def test_the_scaled_product_is_added(tmp_path, dtype):
    tensors = factors(QUERY, 8, 8, dtype=dtype)
    adapter = open_adapter(str(write_adapter(tmp_path / "adapter", tensors)), FIELD)
    base = np.random.default_rng(1).normal(size=(8, 8)).astype(BF16)
    result = adapter.apply_rows(f"{QUERY}.weight", 0, base)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, base.astype(np.float64) + 3 * product(tensors, QUERY), rtol=3e-7, atol=1e-7)
    assert adapter.targets == [f"{QUERY}.weight"]
    assert adapter.changes(f"{QUERY}.weight") and not adapter.changes(f"{KEY}.weight")
    assert {file.name for file in adapter.files} == {"adapter_config.json", "adapter_model.safetensors"}
    assert all(file.is_file() for file in adapter.files)


def test_the_bits_of_a_row_do_not_depend_on_its_piece(tmp_path):
    rows, columns, rank = 3000, 23, 5  # more entries than are computed at a time
    tensors = factors(QUERY, rows, columns, rank)
    adapter = open_adapter(str(write_adapter(tmp_path / "adapter", tensors, r=rank)), FIELD)
    base = np.random.default_rng(1).normal(size=(rows, columns)).astype(np.float32)
    whole = adapter.apply_rows(f"{QUERY}.weight", 0, base)
    assert not np.array_equal(whole, base)
    for cuts in ([1], [1500], [7, 8, 1999, 2000], list(range(100, rows, 100))):
        starts, ends = [0, *cuts], [*cuts, rows]
        pieces = [adapter.apply_rows(f"{QUERY}.weight", row, base[row:end]) for row, end in zip(starts, ends)]
        assert np.concatenate(pieces).tobytes() == whole.tobytes()


def test_two_tensors_in_turn_keep_their_own_factors(tmp_path):
    tensors = factors(QUERY, 8, 8) | factors(KEY, 4, 8)
    adapter = open_adapter(str(write_adapter(tmp_path / "adapter", tensors)), FIELD)
    for module in (QUERY, KEY, QUERY):
        result = adapter.apply_rows(f"{module}.weight", 2, np.zeros((2, 8), np.float32))
        np.testing.assert_allclose(result, 3 * product(tensors, module)[2:4], rtol=3e-7)


@pytest.mark.parametrize(
    "config, query, key",
    [
        ({}, 6 / 2, 6 / 2),
        ({"use_rslora": True}, 6 / 2**0.5, 6 / 2**0.5),
        ({"alpha_pattern": {"k_proj": 5}}, 6 / 2, 5 / 2),
        ({"alpha_pattern": {"self_attn.q_proj": 5, "q_proj": 7}}, 5 / 2, 6 / 2),
        ({"alpha_pattern": {r"layers\.\d+\.self_attn\..*": 1}}, 1 / 2, 1 / 2),
        ({"alpha_pattern": {"proj": 9, "attn.q_proj": 9, "self_attn": 9}}, 6 / 2, 6 / 2),  # whole last parts only
        ({"alpha_pattern": {"^model.layers.1.self_attn.k_proj": 4}}, 6 / 2, 4 / 2),
        ({"r": 9, "rank_pattern": {"q_proj": 2, "k_proj": 2}}, 6 / 2, 6 / 2),
        ({"r": 9, "rank_pattern": {"q_proj|k_proj": 2}, "use_rslora": True}, 6 / 2**0.5, 6 / 2**0.5),
    ],
)
def test_scaling_follows_rank_alpha_and_their_patterns(tmp_path, config, query, key):
    tensors = factors(QUERY, 8, 8) | factors(KEY, 4, 8)
    adapter = open_adapter(str(write_adapter(tmp_path / "adapter", tensors, **config)), FIELD)
    for module, rows, scaling in ((QUERY, 8, query), (KEY, 4, key)):
        result = adapter.apply_rows(f"{module}.weight", 0, np.zeros((rows, 8), np.float32))
        np.testing.assert_allclose(result, scaling * product(tensors, module), rtol=3e-7)


def embedding_factors(generator):
    return {
        f"base_model.model.{EMBED}.lora_embedding_A": generator.normal(size=(2, 16)).astype(np.float32),
        f"base_model.model.{EMBED}.lora_embedding_B": generator.normal(size=(8, 2)).astype(np.float32),
    }


def test_embeddings_take_the_transposed_product_and_replacements_the_place_of_the_base(tmp_path):
    generator = np.random.default_rng(2)
    tensors = embedding_factors(generator)
    a, b = (values.astype(np.float64) for values in tensors.values())
    tensors[f"base_model.model.{EMBED}.base_layer.weight"] = generator.normal(size=(16, 8)).astype(np.float32)
    tensors[f"base_model.model.{HEAD}.weight"] = generator.normal(size=(16, 8)).astype(BF16)
    adapter = open_adapter(str(write_adapter(tmp_path / "adapter", tensors, modules_to_save=[HEAD])), FIELD)
    adapter.check(open_checkpoint(str(write_llama(tmp_path / "base")), "config.model"))
    base = generator.normal(size=(4, 8)).astype(np.float32)
    embedded = tensors[f"base_model.model.{EMBED}.base_layer.weight"] + 3 * (b @ a).T
    np.testing.assert_allclose(adapter.apply_rows(f"{EMBED}.weight", 3, base), embedded[3:7], rtol=1e-6, atol=1e-6)
    head = adapter.apply_rows(f"{HEAD}.weight", 12, base)
    assert head.dtype == np.float32
    np.testing.assert_array_equal(head, tensors[f"base_model.model.{HEAD}.weight"][12:].astype(np.float32))


A, B = f"base_model.model.{QUERY}.lora_A.weight", f"base_model.model.{QUERY}.lora_B.weight"


def _with(**tensors):
    return {**factors(QUERY, 8, 8), **{key.replace("__", "."): value for key, value in tensors.items()}}


MATRIX = np.ones((8, 8), np.float32)


@pytest.mark.parametrize(
    "config, tensors, says",
    [
        ({"peft_type": "LOHA"}, None, "peft_type is 'LOHA'"),
        ({"peft_type": ...}, None, "peft_type is None"),
        ({"use_dora": True}, None, "use_dora"),
        ({"lora_bias": True}, None, "lora_bias"),
        ({"bias": "lora_only"}, None, "bias is 'lora_only'"),
        ({"fan_in_fan_out": True}, None, "fan_in_fan_out"),
        ({"layer_replication": [[0, 2], [1, 2]]}, None, "layer_replication"),
        ({"trainable_token_indices": [3]}, None, "trainable_token_indices"),
        ({"target_parameters": ["experts.down_proj"]}, None, "target_parameters"),
        ({"alora_invocation_tokens": [3]}, None, "alora_invocation_tokens"),
        ({"use_qalora": True}, None, "use_qalora"),
        ({"init_lora_weights": "pissa_niter_4"}, None, "init_lora_weights is 'pissa_niter_4'"),
        ({"modules_to_save": ["norm"]}, None, "modules_to_save has 'norm'"),
        ({"modules_to_save": ["lm_head"]}, None, "lacks lm_head"),
        ({"r": 0}, None, "r is 0"),
        ({"r": True}, None, "r is True"),
        ({"lora_alpha": "16"}, None, "lora_alpha is '16'"),
        ({"rank_pattern": ["q_proj"]}, None, "rank_pattern is ['q_proj']"),
        ({"rank_pattern": {"q_proj": 2.5}}, None, "rank_pattern has 2.5"),
        ({"alpha_pattern": {"q_proj": "x"}}, None, "alpha_pattern has 'x'"),
        ({"alpha_pattern": {"(q_proj": 1}}, None, "not a regular expression"),
        ({"r": 3}, None, "gives model.layers.0.self_attn.q_proj the rank 3"),
        ({}, {A: np.ones((2, 8), np.float32)}, "lacks its factor B"),
        ({}, {B: np.ones((8, 2), np.float32)}, "lacks its factor A"),
        ({}, {A: np.ones((2, 8), np.float32), B: np.ones((8, 3), np.float32)}, "shape [8, 3]"),
        ({}, {A: np.ones((2, 8, 1), np.float32), B: np.ones((8, 2), np.float32)}, "a factor is a matrix"),
        ({}, {A: np.ones((2, 8), np.int8), B: np.ones((8, 2), np.int8)}, "has dtype I8"),
        ({}, {}, "holds no tensors"),
        ({}, _with(base_model__model__model__norm__weight=np.ones(8, np.float32)), "replaces model.norm"),
        (
            {},
            _with(base_model__model__lm_head__weight=MATRIX, base_model__model__lm_head__base_layer__weight=MATRIX),
            "lm_head is replaced twice",
        ),
        ({}, {**factors(QUERY, 8, 8), A.replace("lora_A.weight", "lora_embedding_A"): MATRIX}, "two factors A"),
        ({}, {**factors(QUERY, 8, 8), f"base_model.model.{QUERY}.lora_magnitude_vector": MATRIX}, "lora_magnitude"),
        ({}, {f"{QUERY}.lora_A.weight": MATRIX}, "is not a supported LoRA factor"),
    ],
)
def test_what_is_not_plain_lora_is_refused_by_name(tmp_path, config, tensors, says):
    folder = write_adapter(tmp_path / "adapter", tensors, **config)
    with pytest.raises(BadInput) as refusal:
        open_adapter(str(folder), FIELD)
    line = str(refusal.value)
    assert says in line and str(folder) in line and "\n" not in line


def test_folders_that_hold_no_adapter_are_refused(tmp_path):
    with pytest.raises(BadInput, match=f"^{FIELD}: nowhere is not a folder"):
        open_adapter("nowhere", FIELD)
    with pytest.raises(BadInput, match=f"^{FIELD}: .* has no adapter_config.json"):
        open_adapter(str(write_llama(tmp_path / "base")), FIELD)
    folder = write_adapter(tmp_path / "adapter")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(BadInput, match=f"^{FIELD}: .* has no adapter_model.safetensors"):
        open_adapter(str(folder), FIELD)
    (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(BadInput, match="is not a JSON object"):
        open_adapter(str(folder), FIELD)


@pytest.mark.slow
def test_a_pickle_is_refused_with_a_command_that_converts_it(tmp_path):
    torch = pytest.importorskip("torch")
    folder = write_adapter(tmp_path / "an adapter")
    tensors = safetensors.numpy.load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save({name: torch.from_numpy(values) for name, values in tensors.items()}, folder / "adapter_model.bin")
    with pytest.raises(BadInput, match="pickle") as refusal:
        open_adapter(str(folder), FIELD)
    command = shlex.split(str(refusal.value).partition("(with torch): ")[2])
    assert command[0] == "python"
    subprocess.run([sys.executable, *command[1:]], check=True)
    base = np.zeros((8, 8), np.float32)
    result = open_adapter(str(folder), FIELD).apply_rows(f"{QUERY}.weight", 0, base)
    np.testing.assert_allclose(result, 3 * product(tensors, QUERY), rtol=3e-7)


def test_factors_that_are_not_finite_are_refused(tmp_path):
    tensors = factors(QUERY, 8, 8)
    tensors[B][3, 1] = np.nan
    adapter = open_adapter(str(write_adapter(tmp_path / "adapter", tensors)), FIELD)
    with pytest.raises(BadInput, match="q_proj.lora_B.weight holds values that are not finite"):
        adapter.apply_rows(f"{QUERY}.weight", 0, np.zeros((8, 8), np.float32))


@pytest.mark.parametrize(
    "tensors, overrides, says, named",
    [
        (factors(QUERY.replace(".0.", ".7."), 8, 8), {}, "belongs to model.layers.7.self_attn.q_proj.weight", ""),
        (factors(QUERY.removeprefix("model."), 8, 8), {}, "belongs to layers.0.self_attn.q_proj.weight", ""),
        (
            factors(QUERY, 8, 6),
            {},
            "requires model.layers.0.self_attn.q_proj.weight of shape [8, 6]",
            "q_proj.lora_A.weight requires",
        ),
        (
            factors(QUERY, 6, 8),
            {},
            "requires model.layers.0.self_attn.q_proj.weight of shape [6, 8]",
            "q_proj.lora_B.weight requires",
        ),
        (embedding_factors(np.random.default_rng(0)), {"tie_word_embeddings": True}, "tie_word_embeddings", ""),
        (factors(HEAD, 16, 8), {"tie_word_embeddings": True}, "changes only lm_head.weight", ""),
        (
            {f"base_model.model.{HEAD}.weight": np.ones((17, 8), np.float32)},
            {},
            "requires lm_head.weight of shape [17",
            "",
        ),
    ],
)
def test_an_adapter_of_another_model_is_refused(tmp_path, tensors, overrides, says, named):
    base = open_checkpoint(str(write_llama(tmp_path / "base", **overrides)), "config.model")
    adapter = open_adapter(str(write_adapter(tmp_path / "adapter", tensors)), FIELD)
    with pytest.raises(BadInput) as refusal:
        adapter.check(base)
    line = str(refusal.value)
    assert says in line and named in line and line.startswith(f"{FIELD}: ") and "config.model" in line
    assert any(f"tensor {name} " in line for name in tensors)


def test_an_adapter_of_this_model_passes(tmp_path):
    base = open_checkpoint(str(write_llama(tmp_path / "base", tie_word_embeddings=True)), "config.model")
    open_adapter(str(write_adapter(tmp_path / "adapter")), FIELD).check(base)


def test_a_location_is_split_where_it_separates(tmp_path, monkeypatch):
    for name in ("model", "a+b", "lora", "lo+ra", "a+b+lora"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert split_location("model") == ("model", "")
    assert split_location("model+lora") == ("model", "lora")
    assert split_location("a+b") == ("a+b", "")
    assert split_location("a+b+lo+ra") == ("a+b", "lo+ra")
    assert split_location("model+org/x+lora") == ("model", "org/x+lora")  # the model's folder tells more
    assert split_location("a+b+org/lora") == ("a+b", "org/lora")
    assert split_location("a+b+lora") == ("a+b+lora", "")  # a folder of that name
    assert split_location("org/name@v1+2+lora") == ("org/name@v1+2", "lora")
    assert split_location("org/name+org/lora") == ("org/name", "org/lora")
    assert split_location("miniature:base+lora") == ("miniature:base", "lora")
    assert split_location("model+") == ("model+", "")


def test_peft_makes_the_same_weights_of_the_same_adapter(tmp_path, repository, figures):
    python = os.environ.get("CLINMERGE_PEFT_PYTHON")
    if not python:
        pytest.skip("CLINMERGE_PEFT_PYTHON does not name a Python with third_party/reference/requirements-peft.txt")
    generator = np.random.default_rng(5)
    base = write_llama(tmp_path / "base", dtype=np.float32)
    config = {
        "target_modules": ["q_proj", KEY, DOWN, "embed_tokens"],
        "modules_to_save": [HEAD],
        "use_rslora": True,
        "rank_pattern": {"k_proj": 3},
        "alpha_pattern": {r"layers\.\d\.mlp\.down_proj": 5, "^model.layers.1.self_attn.q_proj": 1},
    }
    tensors = {
        **factors(QUERY, 8, 8),
        **factors(QUERY.replace(".0.", ".1."), 8, 8),
        **factors(KEY, 4, 8, rank=3, dtype=np.float16),
        **factors(DOWN, 8, 12),
        **embedding_factors(generator),
        f"base_model.model.{HEAD}.weight": generator.normal(size=(16, 8)).astype(np.float32),
    }
    folder = write_adapter(tmp_path / "adapter", tensors, **config)
    merged = tmp_path / "merged"
    script = repository / "third_party" / "reference" / "peft_logits.py"
    command = [python, script, base, "0,3,5", tmp_path / "logits.npy", "--adapter", folder, "--merged", merged]
    subprocess.run(command, check=True, capture_output=True)
    theirs = safetensors.numpy.load_file(merged / "model.safetensors")
    adapter, checkpoint = open_adapter(str(folder), FIELD), open_checkpoint(str(base), "config.model")
    adapter.check(checkpoint)
    largest = 0.0
    for name, entry in checkpoint.tensors.items():
        ours = read_tensor(entry)
        if adapter.changes(name):
            assert np.abs(theirs[name] - ours).max() > 0.1
            ours = adapter.apply_rows(name, 0, ours)
        largest = max(largest, np.abs(theirs[name] - ours).max() / np.abs(ours).max())
    figures.append(f"LoRA adapter added to weights, largest relative difference from PEFT: {largest:.1e}")
    assert len(adapter.targets) == 6 and largest < 1e-6
