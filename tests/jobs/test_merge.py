"""The merge job from end to end, on the miniature as it ships."""

import json
import pathlib

import jax
import numpy as np
import pytest
from support import TINY, WORDS, llama_tensors, run_command, run_process, write_llama, write_tokenizer
from tokenizer_builders import EOT, llama_3, write_model

from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.parameters.params import load_params
from clinmerge_jax.evaluation import trade_off
from clinmerge_jax.jobs import merge as merge_job
from clinmerge_jax.llama.model import forward
from clinmerge_jax.statistics import Interval


@pytest.fixture(scope="module")
def default_run(repository, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "merge"
    process = run_process(repository, "--config=configs/merge.py", f"--config.output={output}")
    assert process.returncode == 0, process.stderr
    return output, process.stdout


def test_the_default_run_prints_a_table_and_where_picture_and_result_are(default_run):
    output, text = default_run
    for word in (
        "clinical generation",
        "medical questions",
        "instructions followed",
        "both at once",
        "without a model",
    ):
        assert word in text
    assert f"The merged checkpoint is {output}" in text and "Next:" in text
    rows = [json.loads(line) for line in (output / "results.jsonl").read_text().splitlines()]
    systems = [row for row in rows if not row["model"].startswith("t = ")]
    assert {row["model"] for row in systems} == {"base", "clinical", "instruct", "merged"} and len(systems) == 16
    assert [row["model"] for row in rows[16::2]] == ["t = 0.1", "t = 0.3", "t = 0.7", "t = 0.9"] and len(rows) == 24
    for row in systems:
        assert 0 <= row["low"] <= row["estimate"] <= row["high"] <= 100
        assert f"{row['estimate']:.0f} [{row['low']:.0f}, {row['high']:.0f}]" in text
    card = (output / "README.md").read_text()
    assert "license: apache-2.0" in card and "What the merge keeps" in card and "Relative distance" in card
    assert (output / "trade_off.png").read_bytes().startswith(b"\x89PNG") and "trade_off.png" in text


def test_each_parent_is_best_on_its_own_side(default_run):
    rows = [json.loads(line) for line in (default_run[0] / "results.jsonl").read_text().splitlines()]
    score = {(row["model"], row["metric"]): row["estimate"] for row in rows}
    for own, other, metric in (("clinical", "instruct", "fact_f1"), ("instruct", "clinical", "prompt_strict")):
        assert score[own, metric] > score[other, metric] + 15
        assert score[own, metric] > score["base", metric] + 15


@pytest.fixture
def asked(monkeypatch):
    """What the default merge asks: the names of the systems, and the recipes of the sweep; scores are made up."""
    calls = []

    def measure(raw, chat, sweep, mesh, progress):
        calls.append(({one.name for one in (*raw, *chat)}, list(sweep)))
        row = [Interval(50.0, 40.0, 60.0)] * len(trade_off.SIDES)
        floors = [(0.0, "empty answer")] * len(trade_off.SIDES)
        return trade_off.TradeOff({one.name: row for one in (*raw, *chat)}, floors, {t: row[:2] for t in sweep})

    monkeypatch.setattr(trade_off, "measure", measure)
    return calls


def test_the_default_measures_also_a_base_that_is_a_parent(repository, tmp_path, asked):
    place = f"--config={repository / 'configs' / 'merge.py'}:task_arithmetic"
    assert run_command(place, "--config.clinical=miniature:base", f"--config.output={tmp_path / 'merged'}") == 0
    assert asked == [({"instruct", "clinical", "merged"}, ["0.1", "0.3", "0.7", "0.9"])]


def test_the_default_asks_neither_one_model_twice_nor_models_with_adapters(repository, tmp_path, asked, monkeypatch):
    measured = []
    monkeypatch.setattr(merge_job, "held_out_sets", lambda *arguments: measured.append(arguments) or [])
    configs = repository / "configs"
    extract = [f"--config={configs / 'merge.py'}:extract_lora", "--config.rank=1"]
    assert run_command(*extract, f"--config.output={tmp_path / 'adapter'}") == 0
    for number, instruct in enumerate(("miniature:clinical", f"miniature:instruct+{tmp_path / 'adapter'}")):
        common = [f"--config={configs / 'merge.py'}", f"--config.instruct={instruct}", "--config.special_rows=False"]
        assert run_command(*common, f"--config.output={tmp_path / str(number)}") == 0
    assert asked == [] and measured == [("auto", True)] * 2


def test_provenance_names_the_inputs_by_digest(default_run, repository):
    import hashlib

    provenance = json.loads((default_run[0] / "provenance.json").read_text())
    models = repository / "clinmerge_jax" / "miniature" / "models"
    for role in ("instruct", "clinical"):
        path = models / role / "model.safetensors"
        assert provenance["sha256"][role]["model.safetensors"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert provenance["recipe"]["merge_method"] == "linear" and provenance["packages"]["jax"]
    assert len(provenance["differences"]) == 38


def test_the_result_loads_in_transformers_with_our_logits(default_run):
    torch = pytest.importorskip("torch")
    import transformers

    output, _ = default_run
    model = transformers.AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(output)
    chat = [{"role": "user", "content": "Where is the dog?"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    config, params = load_params(open_checkpoint(str(output), "x"), np.float32)
    ours = jax.jit(forward, static_argnames="config")(params, np.array([ids]), config=config)[0]
    np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_a_second_run_finds_the_result_and_leaves_it(default_run, repository):
    output, _ = default_run
    before = (output / "model.safetensors").stat().st_mtime_ns
    process = run_process(repository, "--config=configs/merge.py", f"--config.output={output}")
    assert process.returncode == 0 and "finished already" in process.stdout
    assert (output / "model.safetensors").stat().st_mtime_ns == before


def test_another_recipe_is_refused_and_overwrite_replaces(tmp_path, capsys):
    folders = [write_llama(tmp_path / name, seed) for seed, name in enumerate(("one", "two"))]
    output = tmp_path / "merged"
    common = [
        "--config=configs/merge.py:slerp",
        f"--config.instruct={folders[0]}",
        f"--config.clinical={folders[1]}",
        "--config.base=",
        f"--config.output={output}",
    ]
    assert run_command(*common) == 0
    first = (output / "model.safetensors").read_bytes()
    assert run_command(*common, "--config.t=0.3") == 2 and "config.output" in capsys.readouterr().err
    assert (output / "model.safetensors").read_bytes() == first
    assert run_command(*common, "--config.t=0.3", "--config.overwrite=True") == 0
    assert (output / "model.safetensors").read_bytes() != first


def test_inputs_that_moved_are_known_by_their_digest(tmp_path, capsys):
    for seed, name in enumerate(("one", "two")):
        write_llama(tmp_path / "here" / name, seed)

    def arguments(place):
        return (
            "--config=configs/merge.py",
            f"--config.instruct={tmp_path / place / 'one'}",
            f"--config.clinical={tmp_path / place / 'two'}",
            "--config.base=",
            f"--config.output={tmp_path / 'merged'}",
        )

    assert run_command(*arguments("here")) == 0
    (tmp_path / "here").rename(tmp_path / "there")
    assert run_command(*arguments("there")) == 0 and "finished already" in capsys.readouterr().out
    write_llama(tmp_path / "elsewhere" / "one", 5)
    write_llama(tmp_path / "elsewhere" / "two", 1)
    assert run_command(*arguments("elsewhere")) == 2 and "other inputs" in capsys.readouterr().err


def test_credentials_noted_later_and_a_changed_tokenizer_are_not_overlooked(repository, tmp_path, capsys):
    folders = [write_llama(tmp_path / name, seed) for seed, name in enumerate(("one", "two"))]
    for folder in folders:
        write_tokenizer(folder)
        (folder / "LICENSE").write_text(f"terms of {folder.name}")
    common = [
        f"--config={repository / 'configs' / 'merge.py'}",
        f"--config.instruct={folders[0]}",
        f"--config.clinical={folders[1]}",
        "--config.base=",
        f"--config.output={tmp_path / 'merged'}",
    ]
    assert run_command(*common) == 0
    assert (tmp_path / "merged" / "LICENSE").read_text() == "terms of one"
    assert (tmp_path / "merged" / "clinical.LICENSE").read_text() == "terms of two"
    assert run_command(*common, "--config.credentialed=True") == 2
    (folders[1] / "provenance.json").write_text('{"credentialed": true}')
    assert run_command(*common) == 2
    (folders[1] / "provenance.json").unlink()
    assert run_command(*common) == 0 and "finished already" in capsys.readouterr().out
    write_tokenizer(folders[0], chat_template="new")
    assert run_command(*common) == 2


def test_a_llama_whose_tensors_are_not_those_of_its_config_is_refused(repository, tmp_path):
    for seed, name in enumerate(("one", "two")):
        write_llama(tmp_path / name, seed, tensors={"model.norm.weight": np.ones(8, np.float32)})
    status = run_command(
        f"--config={repository / 'configs' / 'merge.py'}",
        f"--config.instruct={tmp_path / 'one'}",
        f"--config.clinical={tmp_path / 'two'}",
        "--config.base=",
        f"--config.output={tmp_path / 'merged'}",
    )
    assert status == 2 and not (tmp_path / "merged").exists()


@pytest.mark.slow
def test_own_held_out_text_is_measured(repository, tmp_path):
    text = tmp_path / "held.jsonl"
    text.write_text("\n".join(json.dumps({"text": f"The dog number {n} sat in the barn."}) for n in range(12)) + "\n")
    output = tmp_path / "merged"
    process = run_process(
        repository,
        "--config=configs/merge.py:biomistral",
        f"--config.evaluate=barn={text}",
        f"--config.output={output}",
        "--config.credentialed=True",
    )
    assert process.returncode == 0, process.stderr
    assert "barn: 12 documents" in process.stdout
    assert "Derived from credentialed data" in (output / "README.md").read_text()
    assert "value: [0.0, 0.5, 0.3, 0.7, 1.0]" in (output / "README.md").read_text()


def test_the_base_is_the_miniatures_for_miniatures_only_and_must_share_the_vocabulary(repository, tmp_path, capsys):
    folders = [write_llama(tmp_path / name, seed) for seed, name in enumerate(("one", "two", "base"))]
    for folder in folders:
        write_tokenizer(folder)
    text = tmp_path / "held.jsonl"
    text.write_text('{"text": "the patient has a fever"}\n{"text": "a cough and a fever"}\n')
    common = [
        f"--config={repository / 'configs' / 'merge.py'}",
        f"--config.instruct={folders[0]}",
        f"--config.clinical={folders[1]}",
        f"--config.evaluate=notes={text}",
    ]
    assert run_command(*common, f"--config.output={tmp_path / 'merged'}") == 0
    assert "| base" not in capsys.readouterr().out
    write_tokenizer(folders[2], [*reversed(WORDS)])
    status = run_command(*common, f"--config.base={folders[2]}", f"--config.output={tmp_path / 'other'}")
    assert status == 2 and "config.base: token" in capsys.readouterr().err


def test_models_whose_special_rows_are_lent_are_measured_and_others_refused(repository, tmp_path, capsys):
    tokenizer = llama_3(["<x>"])
    write_model(tmp_path, "instruct", tokenizer)
    write_model(tmp_path, "clinical", tokenizer, extra=2, zeros=[EOT])
    text = tmp_path / "held.jsonl"
    text.write_text('{"text": "the patient has a fever"}\n{"text": "a cough and a fever"}\n')
    common = [
        f"--config={repository / 'configs' / 'merge.py'}",
        f"--config.evaluate=notes={text}",
        f"--config.instruct={tmp_path / 'instruct'}",
        f"--config.clinical={tmp_path / 'clinical'}",
    ]
    assert run_command(*common, f"--config.output={tmp_path / 'merged'}") == 0
    printed = capsys.readouterr().out
    assert "never trained come from instruct: 1 token ('<|eot_id|>')" in printed and "What the merge" in printed
    write_model(tmp_path, "shorter", llama_3())
    for arguments in (["--config.tokenizer=union"], ["--config.cut_to_common=True"]):
        shorter = f"--config.clinical={tmp_path / 'shorter'}"
        assert run_command(*common, shorter, *arguments, f"--config.output={tmp_path / 'other'}") == 2
        assert "config.evaluate: the models' tokens differ" in capsys.readouterr().err


ENGINES = {
    "streaming": ["--config.engine=streaming"],
    "mesh": ["--config.engine=mesh", *(f"--config.mesh.{axis}=2" for axis in ("data", "fsdp", "tensor"))],
}
SCHEDULE = "--config.t=self_attn=0,1; mlp=1,0.25; 0.5"


@pytest.fixture
def command(repository, tmp_path):
    """The start of a command line, for parents with tokenizers and licences in a few weight files each."""
    for seed, name in enumerate(("one", "two")):
        folder = write_llama(tmp_path / name, seed, shards=3)
        write_tokenizer(folder)
        (folder / "LICENSE").write_text(f"terms of {name}")
    return [
        f"--config={repository / 'configs' / 'merge.py'}:slerp",
        f"--config.instruct={tmp_path / 'one'}",
        f"--config.clinical={tmp_path / 'two'}",
        "--config.base=",
        "--config.evaluate=",
        "--config.max_shard_gb=0.000001",
        SCHEDULE,
    ]


def _files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("method", ["slerp", "linear"])
def test_both_engines_make_the_same_folder(command, method, tmp_path):
    results = []
    for engine, arguments in ENGINES.items():
        output = tmp_path / engine / "merged"
        assert run_command(*command, *arguments, f"--config.method={method}", f"--config.output={output}") == 0
        results.append(_files(output))
    streaming, mesh = results
    records = [json.loads(files.pop("provenance.json")) for files in results]
    assert len([name for name in mesh if name.endswith(".safetensors")]) > 1
    assert mesh == streaming
    assert records[0] == records[1] and len(records[0]["differences"]) == 21


@pytest.mark.parametrize("first, second", [("streaming", "mesh"), ("mesh", "streaming")])
def test_the_result_of_one_engine_is_finished_for_the_other(command, first, second, tmp_path, capsys):
    output = tmp_path / "merged"
    assert run_command(*command, *ENGINES[first], f"--config.output={output}") == 0
    before = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    assert "finished already" not in capsys.readouterr().out
    assert run_command(*command, *ENGINES[second], f"--config.output={output}") == 0
    assert "finished already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in output.iterdir()} == before


@pytest.mark.parametrize("first, second", [("streaming", "mesh"), ("mesh", "streaming"), ("mesh", "mesh")])
def test_an_interrupted_run_of_one_engine_is_finished_by_the_other(command, first, second, tmp_path, monkeypatch):
    undisturbed, output = tmp_path / "undisturbed" / "merged", tmp_path / "merged"
    assert run_command(*command, *ENGINES["streaming"], f"--config.output={undisturbed}") == 0

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(merge_job, "merge_card", interrupted)  # the weights are written by then
        run_command(*command, *ENGINES[first], f"--config.output={output}")
    assert not output.exists() and (tmp_path / ".merged.partial" / "config.json").exists()
    assert run_command(*command, *ENGINES[second], f"--config.output={output}") == 0
    assert {**_files(output), "provenance.json": b""} == {**_files(undisturbed), "provenance.json": b""}


_GATE = "model.layers.0.self_attn.gate.weight"


def _with_gate(folder: pathlib.Path, seed: int) -> None:
    """A parameter that a Llama does not have."""
    write_llama(folder, tensors={**llama_tensors(TINY, seed), _GATE: np.ones((2, 2), np.float32)})


REFUSED = {
    "unknown engine": (["--config.engine=fast"], ["config.engine: 'fast'", "streaming, mesh"], write_llama),
    "mesh that does not use every device": (
        ["--config.engine=mesh", "--config.mesh.data=3"],
        ["config.mesh: data 3", "does not use each of 8 devices once"],
        write_llama,
    ),
    "mesh of fewer devices": (
        [
            "--config.engine=mesh",
            *(f"--config.mesh.{axis}={n}" for axis, n in (("data", 2), ("fsdp", 2), ("tensor", 1))),
        ],
        ["config.mesh: data 2 x fsdp 2 x tensor 1", "does not use each of 8 devices once"],
        write_llama,
    ),
    "mesh of a negative size": (
        ["--config.engine=mesh", "--config.mesh.fsdp=-2"],
        ["config.mesh.fsdp: is -2"],
        write_llama,
    ),
    "mesh for which the model is too small": (
        ["--config.engine=mesh", "--config.mesh.data=1"],
        ["config.mesh: data 1 x fsdp 0 x tensor 0", "data 1 x fsdp 2 x tensor 2, 4 of 8 devices", "hidden size 6"],
        lambda folder, seed: write_llama(folder, seed, hidden_size=6, head_dim=2),
    ),
    "mesh that cuts within a head": (
        ["--config.engine=mesh", "--config.mesh.tensor=4"],
        ["config.mesh.tensor: 4", "num_key_value_heads (2)"],
        write_llama,
    ),
    "mesh that does not divide the hidden size": (
        ["--config.engine=mesh", "--config.mesh.fsdp=8"],
        ["config.mesh.fsdp: 8", "hidden_size (12)"],
        lambda folder, seed: write_llama(folder, seed, hidden_size=12, head_dim=2),
    ),
    "mesh engine for another architecture": (
        ["--config.engine=mesh"],
        ["one/config.json: model_type", "'gemma2'"],
        lambda folder, seed: write_llama(folder, seed, model_type="gemma2"),
    ),
    "mesh engine with a parameter that Params do not hold": (
        ["--config.engine=mesh"],
        [f"one: holds tensor {_GATE} that config.json does not expect"],
        _with_gate,
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_mesh_engine_cannot_do_is_refused_before_anything_is_written(case, repository, tmp_path, capfd):
    arguments, says, write = REFUSED[case]
    for seed, name in enumerate(("one", "two")):
        write(tmp_path / name, seed)
    runs = tmp_path / "runs"
    runs.mkdir()
    capfd.readouterr()
    status = run_command(
        f"--config={repository / 'configs' / 'merge.py'}",
        f"--config.instruct={tmp_path / 'one'}",
        f"--config.clinical={tmp_path / 'two'}",
        "--config.base=",
        "--config.evaluate=",
        f"--config.output={runs / 'merged'}",
        *arguments,
    )
    text = capfd.readouterr().err
    (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
    assert status == 2 and "Traceback" not in text and all(part in line for part in says), text
    assert list(runs.iterdir()) == []
    where, _, rest = line.removeprefix("error: ").partition(": ")
    assert where and "; " in rest, "the line says where, what, and how to fix it"


def test_what_only_the_mesh_engine_refuses_streams(repository, tmp_path):
    for seed, name in enumerate(("one", "two")):
        write_llama(tmp_path / name, seed, model_type="gemma2")
    status = run_command(
        f"--config={repository / 'configs' / 'merge.py'}",
        f"--config.instruct={tmp_path / 'one'}",
        f"--config.clinical={tmp_path / 'two'}",
        "--config.base=",
        "--config.evaluate=",
        f"--config.output={tmp_path / 'merged'}",
    )
    merged = open_checkpoint(str(tmp_path / "merged"), "x")
    assert status == 0 and merged.config["model_type"] == "gemma2"
