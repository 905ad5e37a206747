"""LoRA in the forward pass: where it begins, its dropout, its sum with the weights, its folder."""

import dataclasses
import functools
import json
import os
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny_config, write_llama
from training_batches import draw_documents, make_batch, take_step

from clinmerge_jax.checkpoint.adapters.lora import load_lora, save_lora
from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.output import OutputFolder
from clinmerge_jax.checkpoint.parameters.params import llama_config, load_params
from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.lora import LoraSettings, low_rank_product
from clinmerge_jax.llama.model import abstract_block, forward, last_states
from clinmerge_jax.llama.parameters import init_params
from clinmerge_jax.training.lora import init_adapter, merge_lora, squared_change
from clinmerge_jax.training.optimizer import OptimizerSettings
from clinmerge_jax.training.step import StepSettings, init_state
from clinmerge_jax.training.weights import join

CONFIG = tiny_config(initializer_range=0.2)
LORA = LoraSettings(rank=3, alpha=4.0, rank_stabilized=True)
SETTINGS = StepSettings(OptimizerSettings(1e-2, clip_norm=0.0), 10, lora=LORA, dtype=jnp.float32)
take = functools.partial(take_step, config=CONFIG)
BATCH = [[document] for document in draw_documents(4, CONFIG.vocab_size, 8)]


@pytest.fixture(scope="module")
def params():
    return init_params(CONFIG, jax.random.key(0, impl="rbg"))


@pytest.fixture(scope="module")
def trained():
    """An adapter with every factor drawn."""
    return draw_factors(CONFIG, LORA)


def draw_factors(config, lora):
    rng = np.random.default_rng(0)
    factors = jax.eval_shape(lambda key: init_adapter(config, lora, key), jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(0.2 * rng.normal(size=leaf.shape), leaf.dtype), factors)


@functools.partial(jax.jit, static_argnames="lora")
def states(params, tokens_BT, lora=None):
    with jax.default_matmul_precision("highest"):
        return last_states(params, tokens_BT, CONFIG, lora=lora)


def test_a_new_adapter_changes_nothing_and_its_factors_lie_in_their_range(params):
    adapter = init_adapter(CONFIG, LORA, jax.random.key(1))
    tokens = jnp.arange(12).reshape(2, 6)
    np.testing.assert_array_equal(states(join(params, adapter), tokens, LORA), states(params, tokens))
    for module, inputs in (("self_attn", 16), ("mlp", 16)):
        name = {"self_attn": "q_proj", "mlp": "gate_proj"}[module]
        a_LRI = np.asarray(adapter["layers"][module][name]["lora_a"])
        assert a_LRI.shape == (2, 3, inputs) and 0.9 / inputs**0.5 < np.abs(a_LRI).max() <= 1 / inputs**0.5
        assert len(np.unique(a_LRI)) == a_LRI.size


def test_factors_of_a_layer_do_not_depend_on_the_other_targets():
    few = init_adapter(CONFIG, dataclasses.replace(LORA, targets=("v_proj",)), jax.random.key(1))
    all_of_them = init_adapter(CONFIG, LORA, jax.random.key(1))
    ours, theirs = (tree["layers"]["self_attn"]["v_proj"]["lora_a"] for tree in (few, all_of_them))
    np.testing.assert_array_equal(ours, theirs)


def test_merged_weights_give_the_states_of_the_adapter(params, trained):
    tokens = jnp.arange(12).reshape(2, 6)
    beside = states(join(params, trained), tokens, LORA)
    merged = states(merge_lora(params, trained, LORA), tokens)
    assert np.abs(beside - states(params, tokens)).max() > 0.1
    np.testing.assert_allclose(merged, beside, atol=1e-5)


def test_the_sum_is_rounded_once_to_the_weights_dtype(params, trained):
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    merged = merge_lora(narrow, trained, LORA)
    weight, factors = (tree["layers"]["mlp"]["up_proj"] for tree in (narrow, trained))
    product = np.asarray(factors["lora_b"], np.float64) @ np.asarray(factors["lora_a"], np.float64)
    exact = np.asarray(weight["weight"], np.float64) + LORA.scaling * product
    found = np.asarray(merged["layers"]["mlp"]["up_proj"]["weight"])
    rounded = exact.astype(np.float32).astype(found.dtype)
    assert np.mean(found == rounded) > 0.99  # float32 sums may fall on the other side of a midpoint
    np.testing.assert_allclose(found.astype(np.float64), exact, rtol=2.0**-8 * 1.01)
    np.testing.assert_array_equal(merged["norm"]["weight"], narrow["norm"]["weight"])


def test_the_distance_is_that_of_the_merged_weights(params, trained):
    merged = merge_lora(params, trained, LORA)
    distance = sum(jnp.sum((a - b) ** 2) for a, b in zip(jax.tree.leaves(merged), jax.tree.leaves(params)))
    np.testing.assert_allclose(squared_change(trained, LORA), distance, rtol=1e-4)


def test_no_product_makes_a_gradient_of_the_weights(params, trained):
    batch = make_batch(BATCH, 8, (1, 4))
    outputs_by_inputs = "x".join(map(str, params["layers"]["mlp"]["gate_proj"]["weight"].shape[1:]))

    def products(settings, state, frozen):
        text = take.func.lower(state, frozen, batch, settings=settings, config=CONFIG).as_text()
        return [
            line for line in text.splitlines() if "dot_general" in line and f"-> tensor<{outputs_by_inputs}x" in line
        ]

    full = dataclasses.replace(SETTINGS, lora=None)
    assert len(products(full, init_state(params, full), {})) == 2  # of gate and up
    assert not products(SETTINGS, init_state(trained, SETTINGS), params)


@pytest.mark.slow
def test_dropout_belongs_to_step_layer_module_and_row_and_not_to_the_division(params):
    dropping = dataclasses.replace(SETTINGS, lora=dataclasses.replace(LORA, dropout=0.4, targets=("q_proj",)))
    trained = draw_factors(CONFIG, dropping.lora)
    whole, halves = make_batch(BATCH, 8, (1, 4)), make_batch(BATCH, 8, (2, 2))
    first, seen = take(init_state(trained, dropping, 7), params, whole, settings=dropping)
    _, divided = take(init_state(trained, dropping, 7), params, halves, settings=dropping)
    np.testing.assert_allclose(divided.rows.cross_entropy.reshape(-1), seen.rows.cross_entropy[0], rtol=1e-6)
    _, again = take(init_state(trained, dropping, 7), params, whole, settings=dropping)
    np.testing.assert_array_equal(again.rows.cross_entropy, seen.rows.cross_entropy)
    _, other_seed = take(init_state(trained, dropping, 8), params, whole, settings=dropping)
    later = dataclasses.replace(init_state(trained, dropping, 7), step=jnp.int32(1))
    _, other_step = take(later, params, whole, settings=dropping)
    alike = make_batch([BATCH[0]] * 4, 8, (1, 4))
    _, other_rows = take(init_state(trained, dropping, 7), params, alike, settings=dropping)
    losses = [x.rows.cross_entropy[0, 0].item() for x in (seen, other_seed, other_step)]
    assert len({*losses, *other_rows.rows.cross_entropy[0].tolist()}) == 6  # row 0 of both batches is the same


def test_what_dropout_keeps_is_scaled_so_that_its_mean_stays():
    lora = LoraSettings(rank=1, alpha=1.0, dropout=0.25, targets=("q_proj",))
    x_BTI = jnp.ones((2, 500, 8))
    keys_B = jax.random.split(jax.random.key(3), 2)
    out_BTO = low_rank_product(x_BTI, jnp.eye(8)[:1], jnp.ones((1, 1)), lora, keys_B)
    values, counts = np.unique(out_BTO, return_counts=True)
    np.testing.assert_allclose(values, [0, 1 / 0.75], rtol=1e-6)
    assert abs(counts[1] / counts.sum() - 0.75) < 0.05
    assert not np.array_equal(out_BTO[0], out_BTO[1])


def test_the_block_with_an_adapter_is_made_once():
    assert abstract_block(CONFIG, lora=LORA) is abstract_block(CONFIG, lora=dataclasses.replace(LORA))


@pytest.mark.parametrize(
    "field, value, message",
    [
        ("targets", ("q_proj", "query"), "'query' is not a linear layer of this model; choose from q_proj, k_proj"),
        ("targets", (), "names no layer"),
        ("rank", 0, "config.lora.rank: is 0; give 1 or more"),
        ("dropout", 1.0, "config.lora.dropout: is 1.0"),
    ],
)
def test_settings_that_fit_no_model_are_refused(field, value, message):
    with pytest.raises(BadInput, match=message):
        init_adapter(CONFIG, dataclasses.replace(LORA, **{field: value}), jax.random.key(0))


@pytest.fixture
def saved(tmp_path, trained):
    """The folder of an adapter, of a base in float32, and what is in it."""
    base = open_checkpoint(str(write_llama(tmp_path / "base", dtype=np.float32)), "config.model")
    config = llama_config(base)
    lora = dataclasses.replace(LORA, dropout=0.1, targets=("q_proj", "up_proj"))
    factors = draw_factors(config, lora)
    output = OutputFolder(tmp_path / "adapter", {})
    output.open()
    others = jax.tree.map(lambda leaf: leaf + 1, factors)  # by a run that was killed before it put its folder in place
    for some in (others, factors):
        save_lora(some, lora, config, output, location=str(base.path), base=base)
    output.commit({})
    return tmp_path / "adapter", lora, config, factors


def test_a_saved_adapter_is_read_back_bit_for_bit(saved):
    folder, lora, config, factors = saved
    settings, again = load_lora(str(folder), "config.lora.start", config)
    assert settings == lora
    jax.tree.map(np.testing.assert_array_equal, again, factors)


def test_peft_reads_a_saved_adapter_and_gives_the_logits_of_the_merged_weights(saved, repository, tmp_path, figures):
    python = os.environ.get("CLINMERGE_PEFT_PYTHON")
    if not python:
        pytest.skip("CLINMERGE_PEFT_PYTHON does not name a Python with third_party/reference/requirements-peft.txt")
    folder, lora, config, factors = saved
    script = repository / "third_party" / "reference" / "peft_logits.py"
    command = [python, script, tmp_path / "base", "0,3,5,2", tmp_path / "logits.npy", "--adapter", folder]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    assert not [line for line in json.loads(told)["warnings"] if "adapter" in line or "missing" in line]
    _, weights = load_params(open_checkpoint(str(tmp_path / "base"), "config.model"))
    with jax.default_matmul_precision("highest"):
        ours = forward(merge_lora(weights, factors, lora), jnp.array([[0, 3, 5, 2]]), config)[0]
    difference = np.abs(ours - np.load(tmp_path / "logits.npy")).max()
    figures.append(f"a saved adapter in PEFT: logits up to {np.abs(ours).max():.1f} within {difference:.1e}")
    assert difference < 1e-4


def test_an_adapter_that_treats_layers_differently_is_refused(saved):
    folder, _, config, _ = saved
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"alpha_pattern": {"layers.1.mlp.up_proj": 9}}))
    with pytest.raises(
        BadInput, match=r"config.lora.start: .* has factors of .* for model.layers.1.mlp.up_proj.weight"
    ):
        load_lora(str(folder), "config.lora.start", config)
    shallow = dataclasses.replace(config, num_hidden_layers=1)
    with pytest.raises(BadInput, match="changes model.layers.1.mlp.up_proj.weight in some layers only"):
        load_lora(str(folder), "config.lora.start", shallow)
