"""Whole tasks of lm-eval: from YAML files, on local data, from its own command."""

import importlib
import json
import multiprocessing
import os
import pathlib
import subprocess
import sys

import lm_eval
import lm_eval.tasks
import nltk
import pytest
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from clinmerge_jax.errors import BadInput
from clinmerge_jax.evaluation.harness import __main__ as command
from clinmerge_jax.evaluation.harness.run import run_harness
from clinmerge_jax.evaluation.harness.tasks import LOCAL_TASKS, load_tasks, local_task

from .conftest import MODEL

MEDQA = {
    "question": "A child has a barking cough. What is it?",
    "options": {"A": "croup", "B": "asthma", "C": "measles", "D": "gout"},
    "answer_idx": "A",
}
IFEVAL = {
    "key": 1,
    "prompt": "Say hello in lower case, without commas.",
    "instruction_id_list": ["punctuation:no_comma", "change_case:english_lowercase"],
    "kwargs": [{}, {}],
}


@pytest.fixture
def data_dir(tmp_path):
    for name, row in {"medqa_4options": MEDQA, "ifeval": IFEVAL}.items():
        file = tmp_path / LOCAL_TASKS[name][0]
        file.parent.mkdir()
        file.write_text(json.dumps(row) + "\n")
    return str(tmp_path)


@pytest.mark.parametrize("chat", [pytest.param(False, marks=pytest.mark.slow), True])
def test_tasks_score_as_with_lm_evals_own_adapter(ours, theirs, task_files, chat):
    tasks = load_tasks(["choice", "answer"], include_path=str(task_files))
    found = run_harness(ours.engine, ours.tokenizer, tasks, chat_template=chat, samples=True)
    expected = lm_eval.simple_evaluate(
        model=theirs,
        tasks=load_tasks(["choice", "answer"], include_path=str(task_files)),
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        task_manager=TaskManager(include_defaults=False),
    )
    assert found["results"] == json.loads(json.dumps(expected["results"]))
    for ours_one, their_one in zip(found["samples"]["choice"], expected["samples"]["choice"]):
        assert ours_one["arguments"] == [list(pair) for pair in their_one["arguments"]]
        assert ours_one["arguments"][0][1] == ("A" if chat else " A")
        for ((one, greedy),), ((other, their_greedy),) in zip(ours_one["resps"], their_one["resps"]):
            assert one == pytest.approx(other, abs=1e-4) and greedy == their_greedy
    assert [one["resps"] for one in found["samples"]["answer"]] == [one["resps"] for one in expected["samples"]["answer"]]  # fmt: skip  # noqa: E501


def test_results_hold_neither_texts_nor_paths(ours, task_files):
    tasks = load_tasks([str(task_files / "choice.yaml")])
    found = run_harness(ours.engine, ours.tokenizer, tasks, name="m", limit=2)
    text = json.dumps(found)
    assert found["n-samples"]["choice"] == {"original": 4, "effective": 2}
    assert found["environment"]["packages"]["lm_eval"] == "0.4.13"
    assert (found["model"], found["max_length"], found["truncated"]) == ("m", 64, 0)
    for private in (str(task_files.parent), os.getcwd(), "Peru"):
        assert private not in text


def test_shots_and_generation_arguments_are_passed_on(ours, task_files):
    tasks = load_tasks(["answer"], include_path=str(task_files))
    tasks[0].config.fewshot_split = "test"
    found = run_harness(
        ours.engine, ours.tokenizer, tasks, limit=1, num_fewshot=1, samples=True, gen_kwargs={"max_gen_toks": 3}
    )
    ((context, settings),) = found["samples"]["answer"][0]["arguments"]
    assert found["n-shot"] == {"answer": 1} and context.count("?") == 2
    assert settings["max_gen_toks"] == 3


def test_groups_and_patterns_are_found(ours, task_files):
    (task_files / "both.yaml").write_text("group: both\ntask: [choice, answer]\n")
    assert [task.task_name for task in load_tasks(["choi*"], include_path=str(task_files))] == ["choice"]
    (group,) = load_tasks(["both"], include_path=str(task_files))
    assert sorted(group.child_names) == ["answer", "choice"]
    found = run_harness(ours.engine, ours.tokenizer, [group], limit=1)
    assert {"answer", "choice"} <= set(found["results"])
    assert sorted(found["group_subtasks"]["both"]) == ["answer", "choice"]
    with pytest.raises(BadInput, match="config.harness_tasks: lm-eval refuses the tasks .Duplicate task 'choice'"):
        load_tasks(["both", "choice"], include_path=str(task_files))


def test_local_medqa_asks_as_lm_eval_does(data_dir):
    (task,) = load_tasks(["medqa_4options"], data_dir=data_dir)
    yaml = load_yaml(pathlib.Path(lm_eval.tasks.__file__).parent / "medqa/medqa.yaml")
    row = {f"ending{index}": text for index, text in enumerate(MEDQA["options"].values())}
    row |= {"sent1": MEDQA["question"], "label": 0}
    (doc,) = task.test_docs()
    assert task.doc_to_text(doc) == yaml["doc_to_text"](row)
    assert task.doc_to_target(doc) == yaml["doc_to_target"](row)
    for key in ("output_type", "doc_to_choice", "metric_list"):
        assert local_task("medqa_4options", data_dir)[key] == yaml[key]


@pytest.fixture
def punkt(monkeypatch):
    """NLTK's data are said to be there; nothing here counts sentences."""
    monkeypatch.setattr(nltk.data, "find", lambda *_: None)


def test_local_ifeval_is_lm_evals_own(ours, data_dir, punkt):
    (task,) = load_tasks(["ifeval"], data_dir=data_dir)
    yaml = load_yaml(pathlib.Path(lm_eval.tasks.__file__).parent / "ifeval/ifeval.yaml")
    mine = local_task("ifeval", data_dir)
    for key in ("output_type", "num_fewshot", "doc_to_text", "doc_to_target", "generation_kwargs"):
        assert mine[key] == yaml[key]
    assert {one["metric"] for one in mine["metric_list"]} == {one["metric"] for one in yaml["metric_list"]}
    (doc,) = task.test_docs()
    good, bad = (task.process_results(doc, [answer]) for answer in ("hello there my friend", "hello, FRIEND"))
    assert (good["prompt_level_strict_acc"], bad["prompt_level_strict_acc"]) == (True, False)
    assert mine["metric_list"][2]["aggregation"]([[True, False], [True, True]]) == 0.75
    with pytest.raises(BadInput, match="max_gen_toks 1280 leaves no room"):
        run_harness(ours.engine, ours.tokenizer, [task])
    (again,) = load_tasks(["ifeval"], data_dir=data_dir)
    found = run_harness(ours.engine, ours.tokenizer, [again], gen_kwargs={"max_gen_toks": 8})
    assert 0 <= found["results"]["ifeval"]["inst_level_loose_acc,none"] <= 1


def test_ifeval_without_punkt_is_refused_before_it_asks_a_network(data_dir, monkeypatch):
    def missing(*_):
        raise LookupError

    monkeypatch.setattr(nltk.data, "find", missing)
    with pytest.raises(BadInput, match="nltk.downloader punkt_tab"):
        load_tasks(["ifeval"], data_dir=data_dir)


@pytest.mark.parametrize(
    "names, settings, said",
    [
        ([], {}, "config.harness_tasks: is empty"),
        (["missing.yaml"], {}, "missing.yaml is not a file"),
        (["choice"], {"include_path": "missing"}, "config.harness_include_path: missing is not a folder"),
        (["no_such_task"], {}, "'no_such_task' is not a task of lm-eval"),
    ],
)
def test_tasks_that_are_refused(names, settings, said, monkeypatch):
    monkeypatch.setattr(
        lm_eval.tasks, "TaskManager", lambda include_path=None, **_: TaskManager(include_defaults=False)
    )
    with pytest.raises(BadInput, match=said):
        load_tasks(names, **settings)


def test_a_missing_data_file_is_one_line(task_files):
    (task_files.parent / "rows.jsonl").unlink()
    with pytest.raises(BadInput, match="config.harness_tasks: a data set cannot be loaded"):
        load_tasks(["choice"], include_path=str(task_files))


def test_without_lm_eval_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"needs lm-eval; run pip install 'clinmerge_jax\[harness\]'"):
        load_tasks(["choice"])


def test_the_command_refuses_in_one_line(task_files, monkeypatch, capsys):
    arguments = ["--model", "clinmerge_jax", "--model_args", f"model={MODEL},slotz=8"]
    monkeypatch.setattr(sys, "argv", ["harness", "run", *arguments, "--tasks", str(task_files / "choice.yaml")])
    monkeypatch.setattr(multiprocessing, "set_start_method", lambda method: None)  # this process has one already
    monkeypatch.setattr(
        lm_eval.tasks, "TaskManager", lambda include_path=None, **_: TaskManager(include_defaults=False)
    )
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: --model_args: slotz is unknown; choose from")


@pytest.mark.slow
def test_the_command_scores_and_saves(task_files, tmp_path, repository):
    done = subprocess.run(
        [
            sys.executable, "-m", "clinmerge_jax.evaluation.harness", "run", "--model", "clinmerge_jax",
            "--model_args", f"model={MODEL},slots=8,max_length=64", "--include_path", str(task_files),
            "--tasks", "choice,answer", "--apply_chat_template", "--output_path", str(tmp_path / "out.json"),
        ],
        cwd=repository, capture_output=True, text=True, env={**os.environ, "HF_HOME": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "fork" not in done.stderr
    (file,) = tmp_path.glob("out*.json")
    assert set(json.loads(file.read_text())["results"]) == {"choice", "answer"}
