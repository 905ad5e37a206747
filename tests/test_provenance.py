"""Fingerprints that decide whether a finished result is that of the same inputs."""

import os

from support import write_llama

from clinmerge_jax.checkpoint.digest import sha256
from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.provenance import environment, fingerprint, same_inputs


def _fingerprint(folder):
    return fingerprint(open_checkpoint(str(folder), "x"))


def _digests(folder):
    return {path.name: sha256(path) for path in folder.iterdir()}


def test_the_same_files_are_known_without_reading_them(tmp_path):
    folder = write_llama(tmp_path / "one")
    assert same_inputs(_fingerprint(folder), _fingerprint(folder), {})


def test_touched_or_copied_files_are_known_by_their_digest(tmp_path):
    folder, copy = write_llama(tmp_path / "one"), write_llama(tmp_path / "copy")
    before, digests = _fingerprint(folder), _digests(folder)
    os.utime(folder / "model.safetensors", (1, 1))
    assert same_inputs(before, _fingerprint(folder), digests)
    assert same_inputs(before, _fingerprint(copy), digests)
    assert not same_inputs(before, _fingerprint(copy), {})


def test_other_weights_of_the_same_size_are_other_inputs(tmp_path):
    one, two = (write_llama(tmp_path / str(seed), seed) for seed in (0, 1))
    assert not same_inputs(_fingerprint(one), _fingerprint(two), _digests(one))


def test_another_config_is_another_input(tmp_path):
    one, two = write_llama(tmp_path / "one"), write_llama(tmp_path / "two", rms_norm_eps=1e-6)
    assert not same_inputs(_fingerprint(one), _fingerprint(two), _digests(one))


def test_the_environment_names_versions():
    assert environment()["packages"]["jax"] and environment()["python"]
