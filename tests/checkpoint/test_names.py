"""Tensors under other prefixes: read under the usual names, written back as they came."""

import json

import numpy as np
import pytest
import safetensors.numpy
import support

from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.names import USUAL, Naming, naming_of
from clinmerge_jax.checkpoint.output import OutputFolder
from clinmerge_jax.checkpoint.parameters.params import load_params, save_params

NAMES = list(support.llama_shapes(support.TINY))
SPELLINGS = {
    "wrapper": Naming("language_model.model.", "language_model."),
    "inner wrapper": Naming("model.language_model.", ""),
    "base model": Naming("", ""),
    "usual": USUAL,
}


@pytest.mark.parametrize("naming", SPELLINGS.values(), ids=SPELLINGS)
def test_a_naming_is_recognised_and_inverts_itself(naming):
    stored = [naming.stored(name) for name in NAMES]
    found = naming_of(stored)
    assert found == naming
    assert [found.usual(name) for name in stored] == NAMES


def test_without_a_head_the_wrapper_still_stands_before_it():
    naming = SPELLINGS["wrapper"]
    assert naming_of([naming.stored(name) for name in NAMES if name != "lm_head.weight"]) == naming


@pytest.mark.parametrize("extra", ["vision_tower.layers.0.norm.weight", "projector.weight", "other.lm_head.weight"])
def test_other_tensors_beside_the_prefix_leave_the_names_as_they_are(extra):
    stored = [SPELLINGS["wrapper"].stored(name) for name in NAMES]
    assert naming_of([*stored, extra]) == USUAL


def stored_tensors(folder):
    found = {}
    for path in folder.glob("*.safetensors"):
        found |= safetensors.numpy.load_file(path)
    return found


def write_spelled(folder, naming, seed=0):
    tensors = support.llama_tensors(support.TINY, seed, np.float32)
    spelled = {naming.stored(name): values for name, values in tensors.items()}
    return support.write_llama(folder, dtype=np.float32, tensors=spelled)


@pytest.mark.parametrize("naming", SPELLINGS.values(), ids=SPELLINGS)
def test_a_round_trip_keeps_names_and_bits(naming, tmp_path):
    checkpoint = open_checkpoint(str(write_spelled(tmp_path / "model", naming)), "test")
    config, params = load_params(checkpoint)
    output = OutputFolder(tmp_path / "again", {})
    output.open()
    save_params(params, config, checkpoint.config, output, shard_bytes=2000, naming=checkpoint.naming)
    output.commit({})
    before, after = stored_tensors(tmp_path / "model"), stored_tensors(tmp_path / "again")
    assert sorted(before) == sorted(after)
    for name, values in before.items():
        np.testing.assert_array_equal(values, after[name])
    index = json.loads((tmp_path / "again" / "model.safetensors.index.json").read_text())
    assert sorted(index["weight_map"]) == sorted(before)


@pytest.mark.parametrize("engine", ["streaming", "mesh"])
def test_a_merge_takes_the_names_of_its_first_parent(engine, repository, tmp_path):
    write_spelled(tmp_path / "instruct", SPELLINGS["wrapper"], 1)
    write_spelled(tmp_path / "clinical", USUAL, 2)
    parents = [f"--config.{role}={tmp_path}/{role}" for role in ("instruct", "clinical")]
    config = [f"--config={repository}/configs/merge.py", "--config.method=linear", "--config.t=0.5", "--config.base="]
    output = [f"--config.output={tmp_path}/out", f"--config.engine={engine}"]
    assert support.run_command(*config, *parents, *output) == 0
    one, two, merged = (stored_tensors(tmp_path / name) for name in ("instruct", "clinical", "out"))
    assert sorted(merged) == sorted(one)
    stored = "language_model.model.norm.weight"
    np.testing.assert_array_equal(merged[stored], (one[stored] + two["model.norm.weight"]) / 2)
