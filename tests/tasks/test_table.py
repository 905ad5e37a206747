"""The table of tasks against the data sets, and its wording against lm-eval's."""

import importlib.util
import pathlib
import string

import jinja2
import published_rows
import pytest
import yaml

from clinmerge_jax.data.sets.files import Source
from clinmerge_jax.data.sets.table import SETS
from clinmerge_jax.errors import BadInput
from clinmerge_jax.metrics import Output, count_items
from clinmerge_jax.tasks.generated import GENERATED_SETS
from clinmerge_jax.tasks.items import items
from clinmerge_jax.tasks.prompting import question
from clinmerge_jax.tasks.table import GROUPS, TASKS, named
from clinmerge_jax.tasks.task import Kind

QUESTION = "Which nerve?"
OPTIONS = ["ulnar", "radial", "median", "axillary"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    with published_rows.all_families(tmp_path_factory) as folder:
        yield Source(str(folder))


def _harness(name: str) -> pathlib.Path:
    found = importlib.util.find_spec("lm_eval")
    if found is None:
        pytest.skip("lm-eval is not installed")
    return pathlib.Path(found.submodule_search_locations[0], "tasks", name)


def _harness_function(name: str):
    spec = importlib.util.spec_from_file_location("wording", _harness(name))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.doc_to_text


def _ours(name: str) -> str:
    lines = "\n".join(f"{letter}. {text}" for letter, text in zip("ABCD", OPTIONS))
    return TASKS[name].form.question.format(question=QUESTION, choices=lines)


def test_every_data_set_has_a_task_whose_splits_and_fields_are_there(source):
    assert set(TASKS) == {*SETS, *GENERATED_SETS}
    for task in (TASKS[name] for name in SETS):
        if task.name.startswith("mmlu") and task.name != "mmlu_anatomy":
            continue  # the made-up files have one subject
        for split in (task.test, task.train):
            item = items(task.dataset, split, source, limit=1)[0]
            places = {name for _, name, _, _ in string.Formatter().parse(task.form.question) if name}
            assert places <= set(item.fields) and item.source in item.fields.values()
            assert item.target in "ABCDE" if task.kind is Kind.CHOICE else item.target


@pytest.mark.parametrize("name", [*GROUPS["miniature"], "following_development", "two_turn"])
def test_what_is_made_by_rules_needs_no_files_and_fills_the_form(name):
    task, source = TASKS[name], Source("")
    for split in filter(None, (task.test, task.train)):
        made = GENERATED_SETS[task.dataset].items(split, source)
        assert len({item.id for item in made}) == len(made) >= 60
        assert all(question(task.form, item) for item in made)


def test_the_target_itself_scores_what_a_perfect_answer_does(source):
    for name in ("mts_dialog", "pubmedqa", "gsm8k"):
        task = TASKS[name]
        (item, *_) = items(task.dataset, task.test, source)
        answer = item.shown or item.target
        lead = task.metrics[0]
        counts_IK = count_items([lead], [Output(task.read(answer) if task.read else answer)], [item.target])[lead.name]
        assert lead.score(counts_IK.sum(axis=0)) > 99.9


def test_options_are_lettered_lines_and_the_item_keeps_its_class(source):
    item = items("medqa_4options", "test", source)[0]
    assert item.fields["choices"] == "A. drug A\nB. drug B\nC. drug C\nD. drug D"
    assert (item.target, item.label, item.cluster, item.shown) == ("B", "B", "", None)
    assert items("gsm8k", "test", source)[0].shown.endswith("#### 2,000")


def test_medqa_and_medmcqa_are_worded_as_in_lm_eval():
    row = {"sent1": QUESTION, **{f"ending{place}": text for place, text in enumerate(OPTIONS)}}
    assert _ours("medqa_4options") == _harness_function("medqa/preprocess_medqa.py")(row)
    row = {"question": QUESTION, **{f"op{letter}": text for letter, text in zip("abcd", OPTIONS)}}
    assert _ours("medmcqa") == _harness_function("medmcqa/utils_medmcqa.py")(row)


def test_mmlu_is_worded_as_in_lm_eval():
    usual = yaml.safe_load(_harness("mmlu/default/_default_template_yaml").read_text())
    assert _ours("mmlu_anatomy") == jinja2.Template(usual["doc_to_text"]).render(question=QUESTION, choices=OPTIONS)
    for task in (TASKS[name] for name in TASKS if name.startswith("mmlu")):
        file = yaml.safe_load(_harness(f"mmlu/default/{task.name}.yaml").read_text())
        assert task.form.instruction == file["description"].strip()


def test_groups_are_the_papers_five_and_the_leaderboards_nine():
    assert [task.name for task in named("clinical")] == list(GROUPS["clinical"])
    assert all(task.metrics[0].name == "composite_rouge_bleu_meteor" for task in named("clinical"))
    assert len(named("medical")) == 9 and all(task.kind is Kind.CHOICE for task in named("medical"))
    assert [metric.name for metric in TASKS["pubmedqa"].metrics] == ["accuracy", "macro_f1"]


def test_another_split_is_a_task_of_its_own_name():
    first, second = named("mts_dialog, mts_dialog@test2")
    assert (first.name, first.test, second.name, second.test) == ("mts_dialog", "test1", "mts_dialog@test2", "test2")


@pytest.mark.parametrize(
    "names, message",
    [
        ("medqa", f"config.tasks: 'medqa' is unknown; choose from {', '.join([*GROUPS, 'mimic_bhc'])}"),
        ("", "config.tasks: '' is unknown"),
        ("gsm8k@test9", "config.tasks: 'gsm8k@test9' names no split of gsm8k; choose from train, test"),
        ("clinical@valid", "config.tasks: 'clinical@valid' is unknown"),
        ("medical,pubmedqa", "config.tasks: 'pubmedqa' is named twice"),
    ],
)
def test_other_names_are_refused(names, message):
    with pytest.raises(BadInput) as error:
        named(names)
    assert str(error.value).startswith(message)
