"""Every method gives one result: whatever the pieces, the order of the tensors, the memory, the engine and the mesh."""

import dataclasses

import jax
import numpy as np
import pytest
from support import BF16, in_every_run, llama_tensors, write_llama

from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.formats.safetensors import read_tensor
from clinmerge_jax.checkpoint.output import OutputFolder
from clinmerge_jax.checkpoint.parameters.params import llama_config, load_params, write_weights
from clinmerge_jax.merging.engines.on_device import OnDeviceMerge
from clinmerge_jax.merging.engines.streaming import run_merge
from clinmerge_jax.merging.methods import METHODS, Base
from clinmerge_jax.merging.plan import plan_merge
from clinmerge_jax.merging.recipes.recipe import Recipe, Source, kind_of
from clinmerge_jax.merging.recipes.schedule import Schedule
from clinmerge_jax.parallel.layout import Layout
from clinmerge_jax.parallel.mesh import MeshShape, build_mesh
from configs import merge as merge_config

# Few shapes, as each costs a compilation for every step of a method; a vocabulary that no mesh divides.
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 8}
SIZE = {"vocab_size": 41, "hidden_size": 48, "intermediate_size": 48, **HEADS}
PIECE_BYTES = 10 * 48 * 2  # ten rows in bfloat16
OVER_DEPTH = {"weight": [0.6, 0.3], "density": [0.4, 0.7]}
GIVEN = {
    "slerp": {"t": [0.2, 0.8]},
    "nuslerp": {"nuslerp_flatten": False},
    "karcher": {"max_iter": 5},
    "dare_linear": {"lambda": 0.9},
    "dare_ties": {"normalize": True},
    "della": {"epsilon": 0.2},
    "della_linear": {"epsilon": 0.1, "inverse_density": True},
    "breadcrumbs": {"gamma": 0.05, "density": 0.6},
    "breadcrumbs_ties": {"gamma": 0.1, "rescale": True, "density": 0.5},
    "sce": {"select_topk": 0.3},
    "model_stock": {"filter_wise": True},
    "nearswap": {"t": 0.02},
    "ram": {"epsilon": 0.05},
    "ramplus_tl": {"epsilon": 0.05, "r": 0.5},
    "passthrough": {"scale": [1.5, 0.5]},
}
# The other meshes are tried on methods with sums, thresholds, ranks within a row, and softmaxes over it.
# Parameters of a method under which its passes are of another kind.
VARIANTS = {"nuslerp by columns": ("nuslerp", {"nuslerp_flatten": False, "nuslerp_row_wise": True})}
EVERYWHERE = ("nuslerp", "ties", "della", "arcee_fusion")
# One of each kind in every run: sums, thresholds, ranks within a row. The others with --all.
OFTEN = ("slerp", "ties", "della")
OFTEN_ON_MESHES = [("slerp", (2, 2, 2)), ("della", (2, 2, 2))]
MESHES = [(name, (2, 2, 2)) for name in (*METHODS, *VARIANTS)]
MESHES += [(name, mesh) for name in EVERYWHERE for mesh in [(1, 8, 1), (1, 1, 8)]]


def recipe_of(name: str) -> Recipe:
    """A recipe for the method, with as many models as it takes up to three and coefficients over depth."""
    name, given = VARIANTS.get(name, (name, GIVEN.get(name, {})))
    method = METHODS[name]
    known = {**method.parameters, **method.source_parameters}
    values = {key: value for key, value in {**OVER_DEPTH, **given}.items() if key in known}
    parameters = {key: Schedule.parse(value, key, kind_of(known[key])) for key, value in values.items()}
    sources = tuple(Source(model) for model in ("one", "two", "three")[: method.models[1]])
    base = {Base.REQUIRED: "base", Base.OPTIONAL: "base", Base.FIRST: "one"}.get(method.base, "")
    return Recipe(name, sources, parameters, base=base, seed=5)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Siblings: a base and three models near it, a share of whose entries is the base's."""
    folder = tmp_path_factory.mktemp("models")
    write_llama(folder / "base", **SIZE)
    base = llama_tensors(_config(folder / "base"))
    for seed, name in enumerate(("one", "two", "three"), start=1):
        generator = np.random.default_rng(seed)
        changed = {
            key: np.where(
                generator.random(values.shape) < 0.8,
                values.astype(np.float32) + 0.1 * generator.standard_normal(values.shape, np.float32),
                values.astype(np.float32),
            ).astype(BF16)
            for key, values in base.items()
        }
        write_llama(folder / name, tensors=changed, **SIZE)
    return {name: open_checkpoint(str(folder / name), name) for name in ("one", "two", "three", "base")}


def _config(folder):
    return open_checkpoint(str(folder), "x").config


def _stream(recipe, checkpoints, target, **sizes):
    with OutputFolder(target, {}) as output:
        output.open()
        differences, _ = run_merge(plan_merge(recipe, checkpoints, checkpoints[0].nbytes // 3), output, **sizes)
        output.commit({})
    return _weights(target), {one.name: one.to_json() for one in differences}


def _weights(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.fixture(scope="module")
def streamed(models, tmp_path_factory):
    """Recipe, models and the streaming engine's files and records, by method."""
    made = {}

    def stream(name):
        if name not in made:
            recipe = recipe_of(name)
            checkpoints = [models[model] for model in recipe.models]
            target = tmp_path_factory.mktemp("streamed") / name
            made[name] = recipe, checkpoints, *_stream(recipe, checkpoints, target)
        return made[name]

    return stream


def test_the_config_offers_every_method_and_parameter():
    assert set(merge_config.METHODS) == set(METHODS)
    config = merge_config.get_config()
    for method in METHODS.values():
        for name in (*method.parameters, *method.source_parameters):
            assert ("lambda_" if name == "lambda" else name) in config


@pytest.mark.parametrize("name", in_every_run([*METHODS, *VARIANTS], lambda name: name in OFTEN))
def test_pieces_and_memory_do_not_matter(streamed, tmp_path, name):
    recipe, checkpoints, files, records = streamed(name)
    assert len(files) > 1
    again, same_records = _stream(recipe, checkpoints, tmp_path / "merged", piece_bytes=PIECE_BYTES, held_bytes=0)
    assert again == files and same_records == records


@pytest.mark.parametrize(
    "case",
    in_every_run(
        MESHES, lambda case: case[0] in ("slerp", "della") and case[1] == (2, 2, 2), lambda case: f"{case[0]}-{case[1]}"
    ),
)
def test_engines_and_meshes_do_not_matter(streamed, tmp_path, case):
    name, shape = case
    recipe, checkpoints, files, records = streamed(name)
    shape = MeshShape(*shape)
    layout = Layout(build_mesh(shape, jax.devices()[: shape.size]), llama_config(checkpoints[0]))
    sources = [load_params(checkpoint, mesh=layout.mesh)[1] for checkpoint in checkpoints]
    engine = OnDeviceMerge(layout, sources, recipe.models)
    plan = plan_merge(recipe, checkpoints, checkpoints[0].nbytes // 3)
    with OutputFolder(tmp_path / "merged", {}) as output:
        output.open()
        write_weights(engine.merge(recipe), layout, plan.files, output)
        output.commit({})
    assert _weights(tmp_path / "merged") == files
    assert {key: one.to_json() for key, one in engine.differences(recipe).items()} == records


@pytest.mark.parametrize("name", in_every_run(["dare_ties", "della", "breadcrumbs"], lambda name: name == "dare_ties"))
def test_the_order_of_tensors_and_files_does_not_matter(models, tmp_path, name):
    recipe = recipe_of(name)
    straight, turned = [models[model] for model in recipe.models], []
    for checkpoint in straight:
        tensors = {key: read_tensor(entry) for key, entry in reversed(checkpoint.tensors.items())}
        write_llama(tmp_path / checkpoint.label, tensors=tensors, shards=3, **SIZE)
        turned.append(open_checkpoint(str(tmp_path / checkpoint.label), checkpoint.label))
    for checkpoints, target in ((straight, "a"), (turned, "b")):
        _stream(recipe, checkpoints, tmp_path / target)
    a, b = (open_checkpoint(str(tmp_path / target), "x").tensors for target in "ab")
    assert list(a) != list(b) and set(a) == set(b)
    for key, entry in a.items():
        np.testing.assert_array_equal(read_tensor(entry), read_tensor(b[key]), key)


def test_another_seed_draws_another_mask(streamed, tmp_path):
    recipe, checkpoints, files, _ = streamed("dare_linear")
    other, _ = _stream(dataclasses.replace(recipe, seed=6), checkpoints, tmp_path / "merged")
    assert other != files
