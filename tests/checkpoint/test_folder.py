"""Opening Hugging Face folders: what is read, and what is refused."""

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
import support

from clinmerge_jax.checkpoint.folder import open_checkpoint, resolve
from clinmerge_jax.checkpoint.formats.safetensors import read_tensor
from clinmerge_jax.errors import BadInput

FIELD = "config.instruct"
ONE, TWO, THREE = (f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3))


@pytest.mark.parametrize("shards", [1, 3])
def test_opens_what_the_library_wrote(tmp_path, shards):
    folder = support.write_llama(tmp_path / "model", shards=shards)
    checkpoint = open_checkpoint(str(folder), FIELD)
    written = support.llama_tensors(support.TINY)
    assert checkpoint.config == json.loads((folder / "config.json").read_text())
    assert (checkpoint.path, checkpoint.label, checkpoint.num_hidden_layers) == (folder, FIELD, 2)
    assert checkpoint.files == sorted(folder.glob("*.safetensors")) and len(checkpoint.files) == shards
    assert checkpoint.nbytes == sum(values.nbytes for values in written.values())
    assert set(checkpoint.tensors) == set(written)
    for name, entry in checkpoint.tensors.items():
        assert read_tensor(entry).tobytes() == written[name].tobytes()
    places = [(entry.file, entry.offset) for entry in checkpoint.tensors.values()]
    assert places == sorted(places)


def test_shards_may_be_links_to_files_elsewhere(tmp_path):
    """As in the cache of a download tool."""
    folder = support.write_llama(tmp_path / "model", shards=3)
    for shard in folder.glob("*.safetensors"):
        shard.rename(tmp_path / shard.name)
        shard.symlink_to(tmp_path / shard.name)
    assert len(open_checkpoint(str(folder), FIELD).files) == 3


def _delete(name):
    return lambda folder: (folder / name).unlink()


def _write(name, text):
    return lambda folder: (folder / name).write_text(text)


def _config(**fields):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return change


def _weight_map(change):
    """Rewrites the index with a changed weight_map."""

    def rewrite(folder):
        path = folder / "model.safetensors.index.json"
        weight_map = json.loads(path.read_text())["weight_map"]
        change(weight_map)
        support.write_index(folder, weight_map)

    return rewrite


def _map_all_of(file_name, other):
    return _weight_map(lambda m: m.update({name: other for name, file in m.items() if file == file_name}))


def _pickles_only(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _double(name, file_name):
    content = safetensors.numpy.save({name: np.zeros(8, np.float32)})
    return lambda folder: (folder / file_name).write_bytes(content)


def _unmapped(folder):
    (folder / THREE).write_bytes(safetensors.numpy.save({"extra": np.zeros(2, np.float32)}))


EMBEDDING, NORM = "model.embed_tokens.weight", "model.norm.weight"
EMPTY = safetensors.numpy.save({}).decode()

# Kind: shards, what is done to the folder, and what the message must say.
BROKEN = {
    "no config.json": (1, _delete("config.json"), [FIELD, "no config.json"]),
    "config.json not JSON": (1, _write("config.json", "{"), ["config.json: is not valid JSON"]),
    "config.json a list": (1, _write("config.json", "[]"), ["config.json: is not a JSON object"]),
    "config.json with a key twice": (1, _write("config.json", '{"a":1,"a":2}'), ["config.json: 'a' is given twice"]),
    "no weights": (1, _delete("model.safetensors"), [FIELD, "neither"]),
    "pickles only": (1, _pickles_only, [FIELD, "pytorch_model.bin", "save_pretrained"]),
    "file without tensors": (1, _write("model.safetensors", EMPTY), ["holds no tensors"]),
    "single file and index": (3, _write("model.safetensors", ""), ["holds both"]),
    "index not JSON": (3, _write("model.safetensors.index.json", "x"), ["index.json: is not valid JSON"]),
    "index without weight_map": (3, _write("model.safetensors.index.json", "{}"), ["index.json: has no weight_map"]),
    "weight_map empty": (3, _weight_map(lambda m: m.clear()), ["index.json: has no weight_map"]),
    "weight_map not an object": (3, _write("model.safetensors.index.json", '{"weight_map": [1]}'), ["no weight_map"]),
    "weight_map value not text": (3, _weight_map(lambda m: m.update(extra=5)), ["names '5'"]),
    "weight_map to the parent folder": (3, _map_all_of(ONE, f"../{ONE}"), [f"names '../{ONE}'"]),
    "weight_map to a subfolder": (3, _map_all_of(ONE, f"sub/{ONE}"), [f"names 'sub/{ONE}'"]),
    "weight_map absolute": (3, _map_all_of(ONE, f"/{ONE}"), [f"names '/{ONE}'"]),
    "weight_map with a backslash": (3, _map_all_of(ONE, f"..\\{ONE}"), ["only safetensors files in its folder"]),
    "weight_map to the folder above": (3, _map_all_of(ONE, ".."), ["names '..'"]),
    "weight_map to a pickle": (3, _map_all_of(ONE, "model.bin"), ["names 'model.bin'"]),
    "missing shard": (3, _delete(TWO), [f"names {TWO}, which is not in the folder"]),
    "mapped tensor that its shard lacks": (3, _weight_map(lambda m: m.update(extra=ONE)), ["extra", ONE, "lacks it"]),
    "tensor mapped to another shard": (3, _weight_map(lambda m: m.update({NORM: ONE})), [NORM, ONE, THREE]),
    "tensor in two shards": (3, _double(EMBEDDING, THREE), [THREE, EMBEDDING, f"is also in {ONE}"]),
    "tensor in an earlier shard too": (3, _double(NORM, ONE), [ONE, NORM, THREE]),
    "tensor that the index does not map": (3, _unmapped, [THREE, "extra", "does not map"]),
    "truncated shard": (3, _write(TWO, "x"), [f"{TWO}: is not a safetensors file"]),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_folder_is_refused_in_one_line(tmp_path, kind):
    shards, change, parts = BROKEN[kind]
    folder = support.write_llama(tmp_path / "model", shards=shards)
    shutil.copytree(folder, folder / "sub")
    for shard in folder.glob("*.safetensors"):
        shutil.copy(shard, tmp_path)  # files that a weight_map might reach by a path
    change(folder)
    with pytest.raises(BadInput) as refusal:
        open_checkpoint(str(folder), FIELD)
    message = str(refusal.value)
    assert all(part in message for part in (*parts, str(folder), "; ")) and "\n" not in message


def test_locations_that_are_no_folder():
    for location, problem in {
        "": "is empty",
        "llama": "is not a folder, and not a hub id org/name",
        "./org/model": "is not a folder, and not a hub id",
        "../model": "is not a folder, and not a hub id",
        "/no-such-folder-1/model": "is not a folder, and not a hub id",
        "models/org/name": "is not a folder, and not a hub id",
        "org/model@": "is not a folder, and not a hub id",
        "org/model@../main": "is not a folder, and not a hub id",
        "org/two words": "is not a folder, and not a hub id",
        "~no-such-user-1/model": "is not a folder",
        "x" * 300: "is not a folder",
        "miniature:unknown": "there is no miniature 'unknown'; choose from ",
        "miniature:../models/base": "there is no miniature",
        "miniature:": "there is no miniature ''",
    }.items():
        with pytest.raises(BadInput, match="^config.clinical: ") as refusal:
            resolve(location, "config.clinical")
        assert problem in str(refusal.value)


@pytest.mark.parametrize("layers", [None, 0, -1, "2", 2.0, True])
def test_number_of_layers_is_a_positive_integer(tmp_path, layers):
    folder = support.write_llama(tmp_path / "model")
    _config(num_hidden_layers=layers)(folder)
    checkpoint = open_checkpoint(str(folder), FIELD)
    with pytest.raises(BadInput, match="config.json: num_hidden_layers is "):
        checkpoint.num_hidden_layers  # noqa: B018


def test_carried_files_are_tokenizer_generation_and_licence(tmp_path):
    carried = {
        "LICENSE", "LICENSE.txt", "NOTICE", "USE_POLICY.md", "added_tokens.json", "chat_template.jinja",
        "clinical.LICENSE.md", "generation_config.json", "merges.txt", "special_tokens_map.json", "tokenizer.json",
        "tokenizer.model", "tokenizer_config.json", "vocab.json",
    }  # fmt: skip
    folder = support.write_llama(tmp_path / "model")
    for name in (*carried, "README.md", "provenance.json", "modeling_llama.py", "pytorch_model.bin", "optimizer.pt"):
        (folder / name).touch()
    (folder / "tokenizer.old").mkdir()
    checkpoint = open_checkpoint(str(folder), FIELD)
    assert [path.name for path in checkpoint.carried_files()] == sorted(carried)
