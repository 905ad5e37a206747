"""The merge job on mergekit's recipe files: stages, adapters, templates, and what is written."""

import json

import numpy as np
import pytest
import safetensors.numpy
import support
import tokenizers
import yaml
from tokenizer_builders import llama_3, write_model

from clinmerge_jax.checkpoint.adapters.adapter import open_adapter
from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.formats.safetensors import read_tensor
from clinmerge_jax.checkpoint.tokenizers.tokenizer import read_vocabulary

QUERY = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def folder(tmp_path):
    for seed, name in enumerate(("one", "two", "three", "base")):
        support.write_tokenizer(support.write_llama(tmp_path / name, seed), chat_template="{{ messages[0].content }}")
        (tmp_path / name / "LICENSE").write_text(f"terms of {name}")
    return tmp_path


def _run(folder, text, *arguments):
    (folder / "recipe.yml").write_text(text)
    recipe = f"--config.recipe={folder / 'recipe.yml'}"
    return support.run_command(
        "--config=configs/merge.py", recipe, f"--config.output={folder / 'runs' / 'out'}", *arguments
    )


def _tensor(folder, name=QUERY):
    return read_tensor(open_checkpoint(str(folder), "x").tensors[name]).astype(np.float64)


THREE_STAGES = """
merge_method: linear
parameters: {weight: 1}
models: [{model: half}, {model: three}]
dtype: float32
---
name: half
merge_method: linear
parameters: {weight: 1}
models: [{model: one}, {model: two}]
dtype: float32
"""


def test_documents_are_merged_one_after_another(folder, capfd):
    assert _run(folder, THREE_STAGES) == 0
    half = (_tensor(folder / "one") + _tensor(folder / "two")) / 2
    np.testing.assert_array_equal(_tensor(folder / "runs" / "out.stages" / "half"), half.astype(np.float32))
    whole = (half + _tensor(folder / "three")) / 2
    np.testing.assert_array_equal(_tensor(folder / "runs" / "out"), whole.astype(np.float32))
    assert capfd.readouterr().out.count("The merged checkpoint is") == 2
    assert _run(folder, THREE_STAGES) == 0
    assert capfd.readouterr().out.count("is finished already") == 2


def test_a_later_document_that_is_wrong_is_refused_before_the_first_is_merged(folder, capfd):
    assert _run(folder, THREE_STAGES.replace("weight: 1", "weight: {filter: mlp, value: 1}", 1)) == 2
    assert "document 1: parameters.weight: no filter matches tensor" in capfd.readouterr().err
    assert not (folder / "runs").exists()


REALIGNED = """
merge_method: linear
parameters: {weight: 1}
models: [{model: half}, {model: two}]
---
name: half
merge_method: linear
parameters: {weight: 1}
models: [{model: one}, {model: two}]
tokenizer_source: TWO
"""


def test_a_document_is_planned_with_the_tokenizer_that_an_earlier_one_gives_its_result(tmp_path, capfd):
    write_model(tmp_path, "one", llama_3(["<a>"]))
    write_model(tmp_path, "two", llama_3(["<b>"], shuffle=1))
    text = REALIGNED.replace("TWO", str(tmp_path / "two"))
    assert _run(tmp_path, text, "--config.dry_run=True") == 0
    assert "the tokenizer is" in capfd.readouterr().out and not (tmp_path / "runs").exists()
    assert _run(tmp_path, text) == 0
    vocabulary = read_vocabulary(open_checkpoint(str(tmp_path / "runs" / "out"), "x"), "x")
    assert vocabulary.ids == llama_3(["<b>"], shuffle=1).get_vocab(True)


def test_the_written_recipe_names_everything_and_gives_the_same_bytes_again(folder):
    text = (
        "merge_method: della\nbase_model: base\ndtype: bfloat16\nparameters: {lambda: 0.9}\nmodels:\n"
        "- {model: one, parameters: {weight: [0.2, 0.8], density: 0.6}}\n"
        "- {model: two, parameters: {weight: [{filter: mlp, value: 1}, {value: 0}], density: 0.5, epsilon: 0.1}}\n"
    )
    assert _run(folder, text, "--config.seed=7") == 0
    out = folder / "runs" / "out"
    written = (out / "recipe.yml").read_text()
    assert "seed 7" in written and yaml.safe_load(written)["out_dtype"] == "bfloat16"
    again = f"--config.output={folder / 'again'}"
    (folder / "written.yml").write_text(written)
    command = ("--config=configs/merge.py", f"--config.recipe={folder / 'written.yml'}", again)
    assert support.run_command(*command, "--config.seed=7") == 0
    assert (folder / "again" / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    provenance = json.loads((out / "provenance.json").read_text())
    assert provenance["recipe"]["seed"] == 7 and set(provenance["sha256"]) == {"one", "two", "base"}
    assert {path.name for path in out.glob("*LICENSE*")} == {"LICENSE", "one.LICENSE", "two.LICENSE"}
    assert str(folder) not in (out / "README.md").read_text()


def test_a_dry_run_prints_every_module_and_writes_nothing(folder, capfd):
    before = sorted(folder.rglob("*"))
    text = (
        "merge_method: ties\nbase_model: base\nparameters: {weight: [0, 1], density: 0.5}\n"
        "models: [{model: one}, {model: two}]\n"
    )
    assert _run(folder, text, "--config.dry_run=True") == 0
    assert set(folder.rglob("*")) - set(before) == {folder / "recipe.yml"}
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("| model.")]
    assert len(lines) == 11
    query = next(line for line in lines if "q_proj" in line)
    assert "normalize 1; lambda 1" in query and query.count("weight 0,1; density 0.5") == 2


def _write_adapter(folder, rank=2):
    folder.mkdir()
    generator = np.random.default_rng(3)
    factors = {"A": generator.normal(size=(rank, 8)), "B": generator.normal(size=(8, rank))}
    prefix = "base_model.model." + QUERY.removesuffix(".weight")
    tensors = {f"{prefix}.lora_{kind}.weight": values.astype(np.float32) for kind, values in factors.items()}
    safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 3, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return 1.5 * factors["B"].astype(np.float32).astype(np.float64) @ factors["A"].astype(np.float32)


def test_a_model_may_carry_an_adapter(folder):
    change = _write_adapter(folder / "adapter")
    text = "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: one+adapter}, {model: two}]\ndtype: float32"
    assert _run(folder, text) == 0
    out = folder / "runs" / "out"
    expected = (_tensor(folder / "one") + change + _tensor(folder / "two")) / 2
    np.testing.assert_allclose(_tensor(out), expected, rtol=0, atol=1e-6)
    other = QUERY.replace("layers.0", "layers.1")
    np.testing.assert_array_equal(
        _tensor(out, other), (_tensor(folder / "one", other) + _tensor(folder / "two", other)) / 2
    )
    digests = json.loads((out / "provenance.json").read_text())["sha256"]
    adapter = next(files for role, files in digests.items() if role.endswith(", adapter"))
    assert set(adapter) == {"adapter_config.json", "adapter_model.safetensors"}
    (folder / "adapter" / "adapter_config.json").write_text(
        (folder / "adapter" / "adapter_config.json").read_text().replace('"lora_alpha": 3', '"lora_alpha": 4')
    )
    assert _run(folder, text) == 2  # another adapter: the result that is there is not this one


def test_an_adapter_has_terms_and_credentials_of_its_own(folder):
    _write_adapter(folder / "adapter")
    (folder / "adapter" / "provenance.json").write_text('{"credentialed": true}')
    (folder / "adapter" / "LICENSE").write_text("terms of the adapter")
    (folder / "adapter" / "README.md").write_text("---\nlicense: of-the-adapter\n---\n")
    assert (
        _run(folder, "{merge_method: linear, parameters: {weight: 1}, models: [{model: two}, {model: one+adapter}]}")
        == 0
    )
    out = folder / "runs" / "out"
    assert json.loads((out / "provenance.json").read_text())["credentialed"] is True
    card = (out / "README.md").read_text()
    assert "Derived from credentialed data" in card and "adapter, licence of-the-adapter" in card
    assert yaml.safe_load(card.split("---")[1])["base_model"] == ["two", "one", "adapter"]
    assert "terms of the adapter" in {path.read_text() for path in out.glob("*.LICENSE")}


def test_terms_that_a_parent_inherited_are_inherited_again(folder):
    (folder / "one" / "clinical.LICENSE").write_text("terms of its parent")
    assert _run(folder, "{merge_method: passthrough, models: [{model: one}]}") == 0
    assert (folder / "runs" / "out" / "clinical.LICENSE").read_text() == "terms of its parent"


def test_the_result_may_not_replace_an_adapter_of_its_own(folder, capfd):
    _write_adapter(folder / "adapter")
    (folder / "adapter" / "provenance.json").write_text('{"identity": {}}')
    text = "{merge_method: passthrough, models: [{model: one+adapter}]}"
    assert _run(folder, text, f"--config.output={folder / 'adapter'}", "--config.overwrite=True") == 2
    assert "is in the folder of" in capfd.readouterr().err
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()


def test_an_adapter_of_another_model_is_refused(folder, capfd):
    _write_adapter(folder / "adapter")
    support.write_llama(folder / "wide", hidden_size=16)
    assert _run(folder, "{merge_method: passthrough, models: [{model: wide+adapter}]}") == 2
    assert "lora_A" in capfd.readouterr().err
    assert open_adapter(str(folder / "adapter"), "x").targets == [QUERY]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{merge_method: passthrough, models: [{model: one+adapter}]}", "cannot add adapters"),
        (
            "{merge_method: passthrough, slices: [{sources: [{model: one, layer_range: [0, 2]}]}, "
            "{sources: [{model: two, layer_range: [1, 2]}]}]}",
            "cannot stack layers",
        ),
    ],
)
def test_the_mesh_engine_refuses_by_name_what_it_cannot(folder, capfd, text, problem):
    _write_adapter(folder / "adapter")
    assert _run(folder, text, "--config.engine=mesh") == 2
    assert problem in capfd.readouterr().err


@pytest.mark.slow
def test_the_mesh_engine_runs_recipes_too(folder):
    text = "merge_method: sce\nbase_model: base\nmodels: [{model: one}, {model: two}]\nparameters: {select_topk: 0.5}"
    assert _run(folder, text, "--config.engine=mesh") == 0
    streamed = f"--config.output={folder / 'streamed'}"
    assert support.run_command("--config=configs/merge.py", f"--config.recipe={folder / 'recipe.yml'}", streamed) == 0
    for name in ("model.safetensors", "config.json", "recipe.yml", "README.md"):
        ours, theirs = (path / name for path in (folder / "runs" / "out", folder / "streamed"))
        assert ours.read_bytes() == theirs.read_bytes().replace(b"# streamed", b"# out")


def test_the_chat_template_of_the_recipe_is_the_results(folder):
    text = "{merge_method: passthrough, models: [{model: one}], chat_template: chatml}"
    assert _run(folder, text) == 0
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "runs" / "out")
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "fever"}], tokenize=False)
    assert chat == "<|im_start|>user\nfever<|im_end|>\n"


def test_an_aligned_merge_tells_whose_rows_went_where_and_names_no_place(folder, capfd):
    support.write_llama(folder / "more", 5, vocab_size=18)
    support.write_tokenizer(folder / "more")
    path = folder / "more" / "tokenizer.json"
    backend = tokenizers.Tokenizer.from_file(str(path))
    backend.add_tokens(["edema", "wound"])
    backend.save(str(path))
    text = (
        "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: one}, {model: more}]\ntokenizer_source: union"
    )
    for arguments in (["--config.dry_run=True"], []):
        assert _run(folder, text, *arguments) == 0
        out = capfd.readouterr().out
        assert "* one: rows of tokens that it takes from elsewhere come from more: 2 tokens ('edema', 'wound')" in out
    merged = folder / "runs" / "out"
    card = (merged / "README.md").read_text()
    assert "## Vocabulary" in card and str(folder) not in card
    rows = _tensor(merged, "model.embed_tokens.weight")
    assert len(rows) == len(support.WORDS) + 2
    np.testing.assert_array_equal(rows[-2:], _tensor(folder / "more", "model.embed_tokens.weight")[13:15])
