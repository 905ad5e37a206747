"""Fingerprints that decide whether a finished result is that of the same inputs."""

import os

import pytest
from support import write_llama

from clinmerge_jax.checkpoint.digest import sha256
from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.errors import BadInput
from clinmerge_jax.provenance import digests, environment, fingerprint, is_credentialed, same_result


def _identity(folder, **rest):
    checkpoint = open_checkpoint(str(folder), "x")
    return {"job": "merge", **rest, "environment": {"jax": "1"}, "inputs": {"instruct": fingerprint(checkpoint)}}


def _recorded(folder, **rest):
    checkpoint = open_checkpoint(str(folder), "x")
    return {"identity": _identity(folder, **rest), "sha256": {"instruct": digests(checkpoint, {})}}


def test_the_same_files_are_known_without_reading_them(tmp_path):
    folder = write_llama(tmp_path / "one")
    recorded = {**_recorded(folder), "sha256": {"instruct": {}}}
    assert same_result(recorded, _identity(folder))
    assert same_result(recorded, {**_identity(folder), "environment": {"jax": "2"}})


def test_touched_or_copied_files_are_known_by_their_digest(tmp_path):
    folder, copy = write_llama(tmp_path / "one"), write_llama(tmp_path / "copy")
    recorded = _recorded(folder)
    os.utime(folder / "model.safetensors", (1, 1))
    assert same_result(recorded, _identity(folder))
    assert same_result(recorded, _identity(copy))
    assert not same_result({**recorded, "sha256": {"instruct": {}}}, _identity(copy))


def test_other_weights_config_tokenizer_or_settings_are_another_job(tmp_path):
    recorded = _recorded(write_llama(tmp_path / "one"), t=0.5)
    assert same_result(recorded, _identity(tmp_path / "one", t=0.5))
    assert not same_result(recorded, _identity(tmp_path / "one", t=0.3))
    assert not same_result(recorded, _identity(write_llama(tmp_path / "two", 1), t=0.5))
    assert not same_result(recorded, _identity(write_llama(tmp_path / "three", rms_norm_eps=1e-6), t=0.5))
    (tmp_path / "one" / "generation_config.json").write_text("{}")
    assert not same_result(recorded, _identity(tmp_path / "one", t=0.5))


def test_digests_are_of_config_and_weights_and_known_ones_are_taken(tmp_path):
    checkpoint = open_checkpoint(str(write_llama(tmp_path / "one")), "x")
    weights = checkpoint.path / "model.safetensors"
    assert digests(checkpoint, {}) == {path.name: sha256(path) for path in (checkpoint.path / "config.json", weights)}
    assert digests(checkpoint, {str(weights): "known"})["model.safetensors"] == "known"


def test_credentials_are_inherited(tmp_path):
    checkpoint = open_checkpoint(str(write_llama(tmp_path / "one")), "x")
    assert is_credentialed(True, [checkpoint]) and not is_credentialed(False, [checkpoint])
    (checkpoint.path / "provenance.json").write_text('{"credentialed": true}')
    assert is_credentialed(False, [checkpoint])
    (checkpoint.path / "provenance.json").write_text("{")
    with pytest.raises(BadInput, match="provenance.json"):
        is_credentialed(False, [checkpoint])


def test_the_environment_names_versions():
    assert environment()["packages"]["jax"] and environment()["python"]


def test_a_record_in_another_form_is_another_result(tmp_path):
    folder = write_llama(tmp_path / "one")
    write_llama(tmp_path / "two", 1)
    recorded = _recorded(folder)
    assert not same_result({"identity": recorded["identity"]}, _identity(tmp_path / "two"))
    del recorded["identity"]["inputs"]["instruct"]["files"]
    assert not same_result(recorded, _identity(folder))
