"""Mistral and Qwen generate, merge and train as Llama does: greedy tokens, both engines' bits, and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from support import in_every_run

from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.output import OutputFolder
from clinmerge_jax.checkpoint.parameters.params import load_params, write_weights
from clinmerge_jax.generation.engine import Engine, Request
from clinmerge_jax.generation.sampling import Sampling
from clinmerge_jax.llama.model import forward
from clinmerge_jax.llama.parameters import iterate_params
from clinmerge_jax.merging.engines.on_device import OnDeviceMerge
from clinmerge_jax.merging.engines.streaming import run_merge
from clinmerge_jax.merging.plan import plan_merge
from clinmerge_jax.merging.recipes.recipe import Recipe, Source
from clinmerge_jax.merging.recipes.schedule import Schedule
from clinmerge_jax.parallel.layout import Layout, one_device
from clinmerge_jax.parallel.mesh import MeshShape, build_mesh

CLASSES = {
    "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
}
SIZES = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": None,
}  # fmt: skip
NEW = 12


@functools.cache
def theirs(family, seed=0):
    """A random model of transformers, every parameter of which differs from its start."""
    model = transformers.AutoModelForCausalLM.from_config(CLASSES[family](**SIZES), attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = 0.3 * torch.randn(tensor.shape, generator=generator)
            tensor.copy_(1 + noise if name.endswith("norm.weight") else noise)
    return model


def saved(family, folder, seed=0):
    theirs(family, seed).save_pretrained(folder / f"{family}-{seed}")
    return open_checkpoint(str(folder / f"{family}-{seed}"), f"model {seed}")


@pytest.mark.parametrize("family", in_every_run(CLASSES, lambda family: family == "qwen3"))
def test_greedy_tokens_equal_those_of_transformers(family, tmp_path):
    config, params = load_params(saved(family, tmp_path))
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, 61, length).astype(np.int32) for length in (3, 9, 17)]
    engine = Engine(one_device(config), params, slots=2, length=64, stop_ids=())
    requests = [Request(prompt, NEW, Sampling()) for prompt in prompts]
    ours = dict(engine.generate(requests))
    for place, prompt in enumerate(prompts):
        with torch.no_grad():
            ids = torch.from_numpy(prompt).long()[None]
            told = theirs(family).generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, pad_token_id=0
            )
        assert list(ours[place].tokens) == told[0, len(prompt) :].tolist()


@pytest.mark.parametrize("method", in_every_run(["linear", "slerp"], lambda method: method == "slerp"))
@pytest.mark.parametrize("family", in_every_run(CLASSES, lambda family: family == "qwen2"))
def test_both_engines_merge_to_the_same_bits_and_transformers_reads_them(family, method, tmp_path):
    checkpoints = [saved(family, tmp_path, seed) for seed in (0, 1)]
    name = "t" if method == "slerp" else "weight"
    recipe = Recipe(
        method, (Source("one"), Source("two")), {name: Schedule.parse(0.4, name)},
        base="one" if method == "slerp" else "",
    )  # fmt: skip
    plan = plan_merge(recipe, checkpoints)
    config = load_params(checkpoints[0])[0]
    layout = Layout(build_mesh(MeshShape(1, 2, 2), jax.devices()[:4]), config)
    with OutputFolder(tmp_path / "streamed", {}) as output:
        output.open()
        run_merge(plan, output)
        output.commit({})
    engine = OnDeviceMerge(layout, [load_params(one, mesh=layout.mesh)[1] for one in checkpoints], ("one", "two"))
    with OutputFolder(tmp_path / "mesh", {}) as output:
        output.open()
        write_weights(engine.merge(recipe), layout, plan.files, output)
        output.commit({})
    files = [(tmp_path / engine / "model.safetensors").read_bytes() for engine in ("streamed", "mesh")]
    assert files[0] == files[1]
    _, loading = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "streamed", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]


@pytest.mark.parametrize("family", in_every_run(CLASSES, lambda family: family == "qwen2"))
def test_gradients_equal_those_of_torch(family, tmp_path):
    config, params = load_params(saved(family, tmp_path))
    tokens_BT = np.random.default_rng(0).integers(0, 61, (3, 20)).astype(np.int32)

    def loss(params):
        logits_BTV = forward(params, jnp.asarray(tokens_BT), config)[:, :-1]
        learned_BT1 = jax.nn.log_softmax(logits_BTV)[jnp.arange(3)[:, None], jnp.arange(19), tokens_BT[:, 1:]]
        return -learned_BT1.mean()

    with jax.default_matmul_precision("highest"):
        ours = jax.jit(jax.grad(loss))(params)
    model = theirs(family)
    model.zero_grad()
    ids = torch.from_numpy(tokens_BT).long()
    model(input_ids=ids, labels=ids).loss.backward()
    wanted = {name: tensor.grad.numpy() for name, tensor in model.named_parameters()}
    seen = set()
    for row, leaf in iterate_params(ours, config):
        for layer, name in enumerate(row.names(config)):
            found = np.asarray(leaf[layer] if row.stacked else leaf)
            np.testing.assert_allclose(found, wanted[name], atol=2e-5, err_msg=name)
            seen.add(name)
    assert seen == set(wanted)
