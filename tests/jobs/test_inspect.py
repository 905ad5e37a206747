"""The inspect job from end to end, on tiny Llamas, on the miniature, and on a trained public model."""

import hashlib
import json
import logging
import pathlib

import matplotlib.image
import numpy as np
import pytest
import support
from ml_collections import ConfigDict
from support import TINY, WORDS, llama_tensors, write_llama, write_tokenizer

from clinmerge_jax.checkpoint import remote
from clinmerge_jax.errors import BadInput
from clinmerge_jax.jobs import inspect as inspect_job

COMMON = {"relative_distance.png", "sign_agreement.png", "top_share.png"}
WITH_BASE, WITHOUT = {*COMMON, "change_cosine.png"}, {*COMMON, "weight_angle.png"}
TEXTS = {"README.md", "tensors.jsonl", "provenance.json"}


def config(output, **fields):
    """The job's config."""
    defaults = {"job": "inspect", "instruct": "", "clinical": "", "base": "", "top": 1.0, "overwrite": False}
    return ConfigDict({**defaults, "output": str(output), **{key: _text(value) for key, value in fields.items()}})


def _text(value):
    return str(value) if isinstance(value, pathlib.Path) else value


def near(folder, base, seed, scale=0.2, **overrides):
    """Writes a checkpoint whose weights are a base's with random changes."""
    noise = llama_tensors(TINY, seed, np.float32)
    tensors = {name: (values + scale * noise[name]).astype(np.float32) for name, values in base.items()}
    return write_llama(folder, dtype=np.float32, tensors=tensors, **overrides)


@pytest.fixture
def family(tmp_path):
    """Folders of a base, two models trained from it, and one that has nothing to do with them."""
    base = llama_tensors(TINY, 0, np.float32)
    return {
        "base": write_llama(tmp_path / "base", dtype=np.float32, tensors=base),
        "instruct": near(tmp_path / "instruct", base, 1),
        "clinical": near(tmp_path / "clinical", base, 2),
        "stranger": write_llama(tmp_path / "stranger", 7, np.float32),
    }


@pytest.fixture
def no_pictures(monkeypatch):
    """Spares the time of drawing, where a test is about something else."""
    monkeypatch.setattr(inspect_job, "png", lambda heat_map: heat_map.title.encode())


def parents(family, clinical="clinical", **more):
    """The fields that name the models."""
    return {"instruct": family["instruct"], "clinical": family[clinical], **more}


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    """The result on the miniature, with its base."""
    output = tmp_path_factory.mktemp("runs") / "inspect"
    names = {role: f"miniature:{role}" for role in ("instruct", "clinical")}
    inspect_job.run(config(output, **names, base="auto"))
    return output


def test_the_miniature_is_a_family_with_the_base_nearer(miniature):
    record = json.loads((miniature / "provenance.json").read_text())
    assert {path.name for path in miniature.iterdir()} == WITH_BASE | TEXTS
    assert set(record["lineage"]["verdicts"].values()) == {"one family"}
    assert record["lineage"]["clinical_is_nearer_to"] == "base"
    assert record["packages"]["matplotlib"] and record["credentialed"] is False
    lines = [json.loads(line) for line in (miniature / "tensors.jsonl").read_text().splitlines()]
    assert len(lines) == 38 and {line["layer"] for line in lines} == {None, 0, 1, 2, 3}
    for line in lines:
        assert set(line["pairs"]) == {"clinical vs instruct", "clinical vs base", "instruct vs base"}


def test_the_report_links_pictures_that_are_there(miniature):
    text = (miniature / "README.md").read_text()
    for name in WITH_BASE:
        assert f"]({name})" in text
        picture = matplotlib.image.imread(miniature / name)
        assert picture.shape[0] > 250 and picture.shape[1] > 500
        assert np.unique(picture[..., 0]).size > 20
    for heading in ("Lineage", "Rules of thumb", "By module", "By layer"):
        assert f"## {heading}" in text
    assert "| outside" in text and "| down" in text


def test_provenance_names_the_inputs_by_digest(miniature, repository):
    record = json.loads((miniature / "provenance.json").read_text())
    models = repository / "clinmerge_jax" / "miniature" / "models"
    for role in ("instruct", "clinical", "base"):
        digest = hashlib.sha256((models / role / "model.safetensors").read_bytes()).hexdigest()
        assert record["sha256"][role]["model.safetensors"] == digest


def test_siblings_and_strangers_end_with_different_verdicts(family, tmp_path, capsys, caplog):
    caplog.set_level(logging.WARNING, logger="absl")
    inspect_job.run(config(tmp_path / "one", **parents(family)))
    text = capsys.readouterr().out
    assert "are of one family" in text and "configs/merge.py" in text and not _warnings(caplog)
    assert f"The report is {tmp_path / 'one' / 'README.md'}" in text
    assert {path.name for path in (tmp_path / "one").iterdir()} == WITHOUT | TEXTS
    inspect_job.run(config(tmp_path / "two", **parents(family, "stranger")))
    text = capsys.readouterr().out
    assert "look unrelated" in text and "Next: look for" in text
    assert any("clinical vs instruct: unrelated" in line for line in _warnings(caplog))
    for name in WITHOUT:
        assert (tmp_path / "one" / name).read_bytes() != (tmp_path / "two" / name).read_bytes()


def _warnings(caplog):
    return [record.getMessage() for record in caplog.records if "without tokenizer.json" not in record.getMessage()]


def test_with_a_base_the_changes_are_shown(family, tmp_path, capsys, no_pictures):
    inspect_job.run(config(tmp_path / "with", **parents(family, base=family["base"])))
    text = capsys.readouterr().out
    assert "Clinical is nearer to base" in text and "cosine of changes" in text
    assert {path.name for path in (tmp_path / "with").iterdir()} == WITH_BASE | TEXTS


def test_a_vocabulary_of_another_size_is_noted_and_the_layers_compared(family, tmp_path, capsys, no_pictures):
    tensors = llama_tensors({**TINY, "vocab_size": 20}, 3, np.float32)
    inner = llama_tensors(TINY, 0, np.float32)
    tensors |= {name: values for name, values in inner.items() if "layers" in name}
    larger = write_llama(tmp_path / "larger", dtype=np.float32, tensors=tensors, vocab_size=20)
    inspect_job.run(config(tmp_path / "out", instruct=family["instruct"], clinical=larger))
    text = capsys.readouterr().out
    assert "Note: 2 tensors could not be compared" in text and "[20, 8] in clinical, [16, 8] in instruct" in text
    assert "Note: the vocabularies differ in size (clinical 20, instruct 16)" in text
    assert "would be refused: config.clinical: tensor lm_head.weight has shape" in text
    assert "are of one family" in text
    lines = (tmp_path / "out" / "tensors.jsonl").read_text().splitlines()
    assert len(lines) == 19 and not any("embed" in line for line in lines)


def test_tokens_that_moved_are_noted(family, tmp_path, capsys, no_pictures):
    write_tokenizer(family["instruct"])
    write_tokenizer(family["clinical"], [*reversed(WORDS)])
    inspect_job.run(config(tmp_path / "out", **parents(family)))
    assert "would be refused: config.clinical: token" in capsys.readouterr().out
    assert "## Notes" in (tmp_path / "out" / "README.md").read_text()


def test_a_finished_result_is_left_and_another_is_refused_unless_it_may_be_replaced(
    family, tmp_path, capsys, no_pictures
):
    output = tmp_path / "out"
    inspect_job.run(config(output, **parents(family)))
    before = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    capsys.readouterr()
    inspect_job.run(config(output, **parents(family)))
    assert "finished already" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in output.iterdir()} == before
    with pytest.raises(BadInput, match="another configuration"):
        inspect_job.run(config(output, **parents(family), top=5.0))
    inspect_job.run(config(output, **parents(family), top=5.0, overwrite=True))
    assert "top 5 %" in (output / "README.md").read_text()


def test_credentials_of_a_parent_go_into_the_report(family, tmp_path, no_pictures):
    (family["clinical"] / "provenance.json").write_text('{"credentialed": true}')
    inspect_job.run(config(tmp_path / "out", **parents(family)))
    assert "Derived from credentialed data" in (tmp_path / "out" / "README.md").read_text()


def test_the_report_names_models_of_the_hub_by_their_ids(family, tmp_path, monkeypatch, no_pictures):
    monkeypatch.setattr(remote, "fetch_hub", lambda location, field: family["stranger"])
    inspect_job.run(config(tmp_path / "out", **parents(family, base="org/base")))
    text = (tmp_path / "out" / "README.md").read_text()
    assert "* base: org/base\n" in text and "* clinical: clinical\n" in text and "stranger" not in text


@pytest.mark.parametrize(
    "fields, says",
    [
        ({"top": 0.0}, "config.top: is 0.0; "),
        ({"top": 100.5}, "config.top: is 100.5; "),
        ({"top": float("nan")}, "config.top: is nan; "),
        ({"clinical": ""}, "config.clinical: is empty"),
        ({"base": "miniature:nobody"}, "config.base: there is no miniature 'nobody'"),
        ({"base": "miniature:base"}, "config.clinical and config.instruct and config.base: have no layer matrix"),
        ({"output": ""}, "config.output: is empty"),
    ],
)
def test_what_cannot_be_inspected_is_refused_before_anything_is_written(family, tmp_path, fields, says):
    runs = tmp_path / "runs"
    runs.mkdir()
    with pytest.raises(BadInput) as refusal:
        inspect_job.run(config(**{"output": runs / "out", **parents(family), **fields}))
    assert str(refusal.value).startswith(says) and "\n" not in str(refusal.value)
    assert list(runs.iterdir()) == []


def test_damaged_weights_are_refused_and_leave_nothing(family, tmp_path):
    tensors = llama_tensors(TINY, 0, np.float32)
    tensors["model.norm.weight"][0] = np.nan
    damaged = write_llama(tmp_path / "damaged", dtype=np.float32, tensors=tensors)
    runs = tmp_path / "runs"
    runs.mkdir()
    with pytest.raises(BadInput, match="damaged/model.safetensors: tensor model.norm.weight holds NaN"):
        inspect_job.run(config(runs / "out", instruct=family["instruct"], clinical=damaged))
    assert list(runs.iterdir()) == []


def test_a_trained_public_model_and_a_random_one_are_told_apart(shared, tmp_path, no_pictures):
    weights = shared / "weights"
    if not (weights / "stories260K.bin").is_file():
        pytest.skip("the shared data lacks weights/stories260K.bin")
    folder = tmp_path / "stories"
    support.convert(weights / "stories260K.bin", folder, tokenizer=str(weights / "tok512.bin"))
    settings = json.loads((folder / "config.json").read_text())
    write_llama(tmp_path / "random", 3, np.float32, **settings)
    inspect_job.run(config(tmp_path / "out", instruct=folder, clinical=tmp_path / "random"))
    found = json.loads((tmp_path / "out" / "provenance.json").read_text())["lineage"]
    assert found["verdicts"] == {"clinical vs instruct": "unrelated"}
    assert abs(found["pairs"]["clinical vs instruct"]["z"]) < 5
