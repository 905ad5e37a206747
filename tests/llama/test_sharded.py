"""The forward pass on meshes of eight devices against that of one."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import write_llama

from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.parameters.params import load_params
from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.model import forward
from clinmerge_jax.llama.parameters import iterate_params, parameters
from clinmerge_jax.parallel.layout import Layout, one_device
from clinmerge_jax.parallel.mesh import MeshShape, build_mesh

SIZES = {
    "vocab_size": 51,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
MODELS = {
    "untied": SIZES,
    "tied": {**SIZES, "tie_word_embeddings": True},
    "biases": {**SIZES, "attention_bias": True, "mlp_bias": True},
    "three": {**SIZES, "num_attention_heads": 6, "num_key_value_heads": 3},
}
MESHES = [(8, 1, 1), (2, 2, 2), (1, 1, 8), (1, 8, 1)]
CASES = [(name, mesh) for name in MODELS for mesh in MESHES if name != "three" or mesh[2] == 1]
F32_NOISE = 1e-5  # a sum over cut heads or MLP width is rounded in another order
TOKENS_BT = np.random.default_rng(1).integers(0, SIZES["vocab_size"], (8, 12)).astype(np.int32)


@dataclasses.dataclass
class Case:
    """A model on disk and its logits on one device."""

    folder: pathlib.Path
    config: LlamaConfig
    expected: np.ndarray


@functools.partial(jax.jit, static_argnames="layout")
def run(params, tokens_BT, layout):
    with jax.default_matmul_precision("highest"):
        return forward(params, tokens_BT, layout.config, dtype=jnp.float32, constrain=layout.constrain)


def random_tensors(config: LlamaConfig) -> dict[str, np.ndarray]:
    """Every parameter drawn at random, the biases and norms too, so that none is left out unseen."""
    generator = np.random.default_rng(0)
    return {
        name: (generator.normal(scale=0.1, size=row.shape(config)) + (row.initializer == "ones")).astype(np.float32)
        for row in parameters(config)
        for name in row.names(config)
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Makes each Case when it is first asked for."""

    @functools.cache
    def make(name: str) -> Case:
        fields = MODELS[name]
        tensors = random_tensors(LlamaConfig.from_json({"model_type": "llama", **fields}, name))
        folder = write_llama(tmp_path_factory.mktemp(name) / "model", dtype=np.float32, tensors=tensors, **fields)
        config, params = load_params(open_checkpoint(str(folder), "test"))
        logits_BTV = run(params, TOKENS_BT, one_device(config))
        return Case(folder, config, np.asarray(logits_BTV))

    return make


@pytest.fixture(scope="module")
def differences(figures):
    """Collects (largest difference, largest logit, model, mesh); the figures get a summary when all have run."""
    collected: list[tuple[float, float, str, tuple[int, ...]]] = []
    yield collected
    if collected:
        worst, largest, name, mesh = max(collected)
        figures.append(
            f"sharded: {len(collected)} pairs of model and mesh, max |logit| {largest:.2f},"
            f" largest difference to one device {worst:.3g} ({name} on {' x '.join(map(str, mesh))})"
        )


@pytest.mark.parametrize(("name", "mesh"), CASES, ids=str)
def test_logits_on_a_mesh_are_those_of_one_device(models, differences, name, mesh):
    case = models(name)
    layout = Layout(build_mesh(MeshShape(*mesh)), case.config)
    _, params = load_params(open_checkpoint(str(case.folder), "test"), mesh=layout.mesh)
    for row, leaf in iterate_params(params, case.config):
        assert leaf.sharding == layout.sharding(row) and len(leaf.addressable_shards) == 8, row.path
    logits_BTV = run(params, layout.put(TOKENS_BT, "batch", None), layout)
    assert logits_BTV.sharding.is_equivalent_to(layout.named("batch", None, "vocab"), 3)
    assert logits_BTV.shape == (8, 12, {1: 51, 2: 52, 8: 56}[mesh[2]])
    logits_BTV = np.asarray(logits_BTV)
    assert (logits_BTV[..., 51:] == -np.inf).all()
    assert case.expected.shape == (8, 12, 51) and np.std(case.expected) > 0.1
    difference, largest = np.abs(logits_BTV[..., :51] - case.expected).max(), np.abs(case.expected).max()
    differences.append((float(difference), float(largest), name, mesh))
    np.testing.assert_allclose(logits_BTV[..., :51], case.expected, rtol=0, atol=F32_NOISE)


def test_three_key_value_heads_are_refused_where_a_mesh_would_cut_them_in_eight(models):
    case = models("three")
    with pytest.raises(BadInput) as refusal:
        load_params(open_checkpoint(str(case.folder), "test"), mesh=build_mesh(MeshShape(1, 1, 8)))
    message = str(refusal.value)
    assert message.startswith("config.mesh.tensor: 8 does not divide the model's num_") and "\n" not in message
