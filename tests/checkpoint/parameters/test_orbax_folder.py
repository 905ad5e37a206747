"""Params through Orbax: the same bits on another mesh, for other readers, and refusals."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import support

from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.parameters.orbax_folder import is_orbax, load_leaf, load_orbax, save_orbax
from clinmerge_jax.checkpoint.parameters.params import load_params
from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.parameters import iterate_params
from clinmerge_jax.parallel.layout import Layout
from clinmerge_jax.parallel.mesh import MeshShape, build_mesh

SIZES = {"hidden_size": 16, "intermediate_size": 24, "vocab_size": 33, "head_dim": 8, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A Hugging Face folder and the Orbax folder that the job makes of it."""
    place = tmp_path_factory.mktemp("orbax")
    support.write_llama(place / "model", **SIZES)
    support.write_tokenizer(place / "model")
    return place / "model", support.convert(place / "model", place / "orbax", format="orbax")


def _bits(params, config):
    return {row.path: np.asarray(leaf).tobytes() for row, leaf in iterate_params(params, config)}


def test_params_are_those_of_the_checkpoint(saved):
    model, folder = saved
    config, expected = load_params(open_checkpoint(str(model), "model"))
    found_config, found = load_orbax(folder)
    assert found_config == config and _bits(found, config) == _bits(expected, config)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("shape", [(1, 4, 2), (2, 2, 2), (8, 1, 1), (1, 8, 1)])
def test_they_come_back_on_another_mesh(saved, shape):
    """33 rows of vocabulary are padded with zeros to what the tensor axis divides, and everything else is equal."""
    model, folder = saved
    mesh = build_mesh(MeshShape(*shape))
    config, expected = load_params(open_checkpoint(str(model), "model"), mesh=mesh)
    _, found = load_orbax(folder, mesh=mesh)
    assert _bits(found, config) == _bits(expected, config)
    layout = Layout(mesh, config)
    assert all(leaf.sharding == layout.sharding(row) for row, leaf in iterate_params(found, config))


def test_params_cut_over_a_mesh_are_saved_and_come_back_on_one_device(saved, tmp_path):
    model, _ = saved
    config, whole = load_params(open_checkpoint(str(model), "model"))
    mesh = build_mesh(MeshShape(2, 4, 1))
    _, params = load_params(open_checkpoint(str(model), "model"), mesh=mesh)
    shutil.copy(model / "config.json", tmp_path)
    save_orbax(params, tmp_path)
    save_orbax(params, tmp_path)  # in place of what an interrupted run has left
    assert is_orbax(tmp_path)
    assert _bits(load_orbax(tmp_path)[1], config) == _bits(whole, config)


@pytest.mark.filterwarnings("ignore:Sharding info not provided")  # nor is it here
def test_others_read_it_by_names(saved):
    """By Orbax alone, its newer and its older interface: nested dicts in Hugging Face's names, layers in front."""
    model, folder = saved
    tensors = support.read_raw(model / "model.safetensors")
    for tree in (ocp.v1.load(folder / "params"), ocp.StandardCheckpointer().restore(folder / "params" / "state")):
        q_LOI = np.asarray(tree["layers"]["self_attn"]["q_proj"]["weight"])
        assert q_LOI.shape == (2, 32, 16)
        for layer in range(2):
            assert q_LOI[layer].tobytes() == tensors[f"model.layers.{layer}.self_attn.q_proj.weight"][2]
        assert np.asarray(tree["lm_head"]["weight"]).tobytes() == tensors["lm_head.weight"][2]


def test_one_leaf_is_read_alone(saved):
    _, folder = saved
    config, params = load_orbax(folder)
    leaf = load_leaf(folder, config, ("layers", "mlp", "up_proj", "weight"))
    assert np.asarray(leaf).tobytes() == np.asarray(params["layers"]["mlp"]["up_proj"]["weight"]).tobytes()


def test_the_way_back_is_bit_for_bit(saved, tmp_path):
    model, folder = saved
    back = support.convert(folder, tmp_path / "back")
    before, after = (support.read_raw(path / "model.safetensors") for path in (model, back))
    assert before == after
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert json.loads((back / name).read_text()) == json.loads((model / name).read_text())


def _without_config(folder):
    (folder / "config.json").unlink()


def _other_config(folder):
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, "num_hidden_layers": 3}))


def _without_metadata(folder):
    (folder / "params" / "state" / "_METADATA").write_text("{")


def _without_values(folder):
    for path in (folder / "params" / "state" / "ocdbt.process_0" / "d").iterdir():
        path.unlink()


def _tied(folder):
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, "tie_word_embeddings": True}))


@pytest.mark.parametrize(
    "damage, says",
    [
        (_without_config, "without config.json"),
        (_other_config, "input_layernorm.weight has shape [2, 16], but config.json requires [3, 16]"),
        (_without_metadata, "params: embed_tokens.weight is missing"),
        (_without_values, "params: is damaged"),
        (_tied, "params: holds lm_head.weight"),
    ],
)
def test_damage_is_refused_in_one_line(saved, tmp_path, damage, says):
    shutil.copytree(saved[1], tmp_path / "orbax")
    damage(tmp_path / "orbax")
    with pytest.raises(BadInput) as refusal:
        support.convert(tmp_path / "orbax", tmp_path / "out")
    said = str(refusal.value)
    assert says in said and "\n" not in said and [path.name for path in tmp_path.iterdir()] == ["orbax"]


def test_a_job_that_wants_weights_names_the_command(saved):
    _, folder = saved
    with pytest.raises(BadInput) as refusal:
        open_checkpoint(str(folder), "config.model")
    assert f"config.model: {folder} is an Orbax folder; give {folder}-safetensors after launch/run.sh" in str(
        refusal.value
    )
    assert f"--config.source={folder} --config.output={folder}-safetensors" in str(refusal.value)


# A process that starts small: 2.2 GB in one array, more than a data file of Orbax's default holds.
LARGE = """
import pathlib, sys
import jax.numpy as jnp
import process_memory
from clinmerge_jax.checkpoint.parameters.orbax_folder import save_orbax

large = jnp.full((1100, 1000, 1000), 1, jnp.bfloat16).block_until_ready()
process_memory.forget_peak()
before = process_memory.kib("VmRSS")
save_orbax({"large": large}, pathlib.Path(sys.argv[1]))
print(process_memory.kib("VmHWM") - before)
"""


@pytest.mark.slow
def test_an_array_of_more_than_2_gib_is_written_without_a_copy(tmp_path):
    assert int(support.run_script(LARGE, tmp_path)) < 200_000  # KiB
