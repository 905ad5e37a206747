"""The evaluate job: cells that are done once, tables, what is kept and what is refused."""

import csv
import json
import stat

import pytest
import support

import configs.evaluate
from clinmerge_jax.evaluation.task_data import read_task_data
from clinmerge_jax.results.records import RESULTS_FILE

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %} {{ m.role }} {{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %} assistant {% endif %}"
)
WORDS = (*support.WORDS, "A", "B", "Answer:", "A.", "B.", "Question:")
LINES = [
    "the patient has a fever",
    "the fever and the cough",
    "a cough .",
    "the patient has the cough .",
    "fever and a cough",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    for seed, name in enumerate(("one", "two")):
        support.write_llama(
            folder / name, seed, max_position_embeddings=64, eos_token_id=None, vocab_size=len(WORDS) + 3
        )
        support.write_tokenizer(folder / name, WORDS, chat_template=TEMPLATE)
    rows = [{"input": line, "output": " ".join(line.split()[:2])} for line in LINES * 2]
    _write(folder / "test.jsonl", [{**row, "visit": index // 2} for index, row in enumerate(rows)])
    _write(folder / "train.jsonl", [{"input": f"{line} . .", "output": line} for line in LINES[:3]])
    _write(folder / "quiz.jsonl", [
        {"input": line, "output": "AB"[index % 2], "choices": ["fever", "cough"]} for index, line in enumerate(LINES)
    ])  # fmt: skip
    return folder


def _write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _arguments(folder, output, *more, models=("one",)):
    return [
        "--config=configs/evaluate.py",
        f"--config.model={','.join(f'{name}={folder / name}' for name in models)}",
        "--config.tasks=",
        "--config.own.name=starts",
        f"--config.own.test={folder / 'test.jsonl'}",
        f"--config.own.train={folder / 'train.jsonl'}",
        "--config.own.cluster=visit",
        "--config.own.metrics=rouge1_unstemmed,exact_match,length_ratio",
        "--config.own.max_new_tokens=4",
        "--config.slots=8",
        "--config.length=64",
        f"--config.output={output}",
        *more,
    ]  # fmt: skip


def _lines(output):
    return [json.loads(line) for line in (output / RESULTS_FILE).read_text().splitlines()]


@pytest.fixture(scope="module")
def evaluated(folder):
    """Two models, a task of text, with everything kept."""
    output = folder / "out"
    arguments = _arguments(
        folder, output, "--config.compare_to=one", "--config.save_generations=True", "--config.human_sheet=3",
        models=("one", "two"),
    )  # fmt: skip
    assert support.run_command(*arguments) == 0
    return output, arguments


def test_every_cell_and_every_floor_is_a_line_without_text(evaluated):
    lines = _lines(evaluated[0])
    systems = {line["cell"]["system"] for line in lines if not line["cell"]["floor"]}
    floors = {line["cell"]["system"] for line in lines if line["cell"]["floor"]}
    assert systems == {"one", "two"} and floors >= {"copy the input", "one training target", "the reference itself"}
    for line in lines:
        assert len(line["items"]) == 10 and len(set(line["clusters"])) == 5
        assert {"python", "packages", "device", "sha256", "settings"} <= set(line["provenance"])
    by_name = {line["cell"]["system"]: line["scores"] for line in lines}
    assert by_name["the reference itself"]["exact_match"] == 100 and by_name["empty answer"]["rouge1_unstemmed"] == 0
    assert "fever" not in (evaluated[0] / RESULTS_FILE).read_text()


def test_tables_are_for_people_programs_and_print(evaluated):
    output, _ = evaluated
    summary = (output / "summary.md").read_text()
    assert "starts@test (generated)" in summary and "*copy the input*" in summary and "### Differences" in summary
    assert "10 items in 5 clusters" in summary
    with (output / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["system"] for row in rows if row["kind"] == "system"} == {"one", "two"}
    assert all(float(row["low"]) <= float(row["score"]) <= float(row["high"]) for row in rows if row["low"])
    table = (output / "scores.tex").read_text()
    assert "\\toprule" in table and "rouge1\\_unstemmed" in table
    floors = list(dict.fromkeys(row["system"] for row in rows if row["kind"] != "system"))
    assert floors == sorted(floors, key=lambda name: table.index(f"\n{name} &"))  # not in the order of a set
    assert (output / "contrasts.csv").read_text().count("\n") == 2


def test_a_rerun_does_nothing_again_and_a_further_model_only_itself(evaluated, folder, capfd):
    output, arguments = evaluated
    before = (output / RESULTS_FILE).read_bytes()
    assert support.run_command(*arguments) == 0
    assert "2 cells: 2 models, 1 tasks; 2 are there already, 0 to do." in capfd.readouterr().out
    assert (output / RESULTS_FILE).read_bytes() == before
    assert support.run_command(*[one.replace(f"two={folder / 'two'}", f"two={folder / 'two'},again={folder / 'one'}")
                                 for one in arguments if "human" not in one]) == 0  # fmt: skip
    assert "2 are there already, 1 to do." in capfd.readouterr().out
    lines = {line["cell"]["system"]: line for line in _lines(output)}
    assert lines["again"]["counts"] == lines["one"]["counts"]


def test_answers_are_the_owners_alone_and_can_be_scored_without_the_model(evaluated, folder):
    output, _ = evaluated
    (stored,) = (output / "generations").glob("one_*")
    (file,) = stored.iterdir()
    assert file.name == "starts@test.jsonl" and stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE((output / "generations").stat().st_mode) == stat.S_IMODE(stored.stat().st_mode) == 0o700
    scored = folder / "scored"
    arguments = _arguments(folder, scored)
    arguments[1] = f"--config.model=one=answers:{stored}"
    assert support.run_command(*arguments) == 0
    before, after = ({one["cell"]["system"]: one["counts"] for one in _lines(path)} for path in (output, scored))
    assert before["one"] == after["one"]


def test_the_sheet_for_people_tells_nobody_who_wrote_what(evaluated):
    output, _ = evaluated
    with (output / "human_sheet" / "sheet.csv").open() as file:
        sheet = list(csv.DictReader(file))
    with (output / "human_sheet_key" / "key.csv").open() as file:
        key = list(csv.DictReader(file))
    assert len(sheet) == len(key) == 6 and [row["number"] for row in sheet] == [row["number"] for row in key]
    assert not any(row[column] for row in sheet for column in ("correct", "complete", "fluent", "remarks"))
    assert not {"system", "seed"} & set(sheet[0])
    assert {row["system"] for row in key} == {"one", "two"}
    assert stat.S_IMODE((output / "human_sheet" / "sheet.csv").stat().st_mode) == 0o600


def test_prompts_are_shown_by_their_form_alone_unless_the_task_may_be_shared(evaluated, folder):
    forms = [path.read_text() for path in (evaluated[0] / "prompts").iterdir()]
    assert len(forms) >= 2 and set(forms) == {"<input>\n"}
    shared = folder / "shared"
    assert support.run_command(*_arguments(folder, shared, "--config.own.shareable=True", "--config.shots=2")) == 0
    (file,) = (shared / "prompts").iterdir()
    shown = file.read_text()
    assert "the patient has a fever" in shown and shown.count(" . . ") == 2


def test_a_choice_is_answered_by_letters_and_in_words_side_by_side(folder):
    output = folder / "quiz"
    arguments = _arguments(
        folder, output, f"--config.own.test={folder / 'quiz.jsonl'}", "--config.own.train=", "--config.own.kind=choice",
        "--config.own.metrics=", "--config.own.cluster=", "--config.chat_template=True",
    )  # fmt: skip
    assert support.run_command(*arguments) == 0
    modes = {line["cell"]["mode"]: line for line in _lines(output) if not line["cell"]["floor"]}
    assert set(modes) == {"letters", "generated"} and all(line["cell"]["chat"] for line in modes.values())
    assert "unread" in modes["generated"]["scores"] and "unread" not in modes["letters"]["scores"]
    floors = {line["cell"]["system"]: line["scores"]["accuracy"] for line in _lines(output) if line["cell"]["floor"]}
    assert floors["the reference itself"] == 100 and floors["most frequent letter (of the test)"] == 60


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            ["--config.own.train={test}"],
            "every training item is also an evaluation item; give a training file other than the test",
        ),
        (["--config.shots=9"], "config.shots: 9 examples for starts@test, but its training split has 3"),
        (
            ["--config.own.target=summary"],
            "test.jsonl:1: has no 'summary'; name one of 'input', 'output', 'visit' with config.own.target",
        ),
        (["--config.own.test={latin}"], "latin.jsonl:1: is not UTF-8 at byte"),
        (["--config.own.test={empty}"], "empty.jsonl:2: 'output' is empty or not text; give text in every row"),
        (["--config.own.test={long}"], "long.jsonl:1: its prompt has 100 tokens, and 60 fit beside the answer"),
        (["--config.own.test={bos}", "--config.chat_template=True"], "bos.jsonl:1: holds <s>, a special token"),
        (["--config.choices=numbers"], "config.choices: 'numbers' is unknown; give letters, generated, or both"),
        (["--config.compare_to=three"], "config.compare_to: 'three' is not a model; choose from one"),
        (["--config.human_sheet=3"], "config.human_sheet: needs the answers; set config.save_generations=True too"),
        (["--config.seeds=0,zero"], "config.seeds: '0,zero' is not a list of whole numbers"),
        (["--config.tasks=medqa"], "config.tasks: 'medqa' is unknown; choose from"),
        (["--config.tasks=gsm8k"], "config.data_dir: '' is not a folder; give the one that holds the published files"),
        (["--config.metrics=rouge"], "config.metrics: 'rouge' is unknown"),
        (["--config.model=one={one},one={two}"], "config.model: one is named twice"),
        (["--config.model=answers:nowhere"], "config.model: answers:nowhere names no folder of answers"),
        (["--config.output={one}"], "is in the folder of a model"),
        (["--config.too_long=drop"], "config.too_long: 'drop' is unknown; give refuse or cut"),
        (["--config.slots=-1"], "config.slots: is -1; give a multiple of"),
    ],
)
def test_bad_input_is_one_line_without_its_words_and_leaves_nothing(folder, capfd, changes, line):
    _write(
        folder / "empty.jsonl",
        [{"input": "the fever", "output": "fever", "visit": 1}, {"input": "the cough", "output": " ", "visit": 2}],
    )
    _write(folder / "long.jsonl", [{"input": "cough " * 100, "output": "fever", "visit": 1}])
    _write(folder / "bos.jsonl", [{"input": "<s> cough", "output": "fever", "visit": 1}])
    (folder / "latin.jsonl").write_bytes(b'{"input": "caf\xe9", "output": "fever"}\n')
    names = {name: folder / f"{name}.jsonl" for name in ("test", "latin", "empty", "long", "bos")}
    names |= {name: folder / name for name in ("one", "two")}
    output = folder / "refused"
    assert support.run_command(*_arguments(folder, output, *(change.format(**names) for change in changes))) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and line in error
    assert "cough" not in error and not output.exists()


def test_what_is_cut_is_counted_and_said(folder, capfd):
    _write(folder / "long.jsonl", [{"input": "cough " * 100, "output": "fever"}, {"input": "cough", "output": "fever"}])
    output = folder / "cut"
    arguments = _arguments(folder, output, f"--config.own.test={folder / 'long.jsonl'}", "--config.too_long=cut",
                           "--config.own.cluster=", "--config.own.train=")  # fmt: skip
    assert support.run_command(*arguments) == 0
    assert "the input of 1 of 2 items was cut to fit the context" in capfd.readouterr().out
    assert [line["about"]["cut"] for line in _lines(output) if not line["cell"]["floor"]] == [1]


def test_answers_that_were_kept_are_scored_by_a_further_metric_without_being_made_again(folder):
    output = folder / "further"
    arguments = _arguments(folder, output, "--config.save_generations=True")
    assert support.run_command(*arguments) == 0
    assert support.run_command(*arguments, "--config.metrics=bleu") == 0
    first, second = (line for line in _lines(output) if not line["cell"]["floor"])
    assert "kept" not in first["about"] and second["about"]["kept"]
    assert second["counts"]["exact_match"] == first["counts"]["exact_match"] and "bleu" in second["counts"]


@pytest.mark.slow
def test_other_examples_settings_and_clusters_are_other_cells_and_not_compared(folder, capfd):
    output = folder / "others"
    assert support.run_command(*_arguments(folder, output, "--config.shots=1")) == 0
    _write(folder / "train2.jsonl", [{"input": "a fever . . .", "output": "fever and the cough"}])
    changes = (
        [f"--config.own.train={folder / 'train2.jsonl'}"],
        ["--config.repetition_penalty=2.0"],
        ["--config.own.cluster="],
    )
    for change in changes:
        capfd.readouterr()
        assert support.run_command(*_arguments(folder, output, "--config.shots=1", *change)) == 0
        assert "0 are there already, 1 to do." in capfd.readouterr().out
    assert support.run_command(*_arguments(folder, output, "--config.shots=1", "--config.repetition_penalty=2.0")) == 0
    shown = capfd.readouterr().out
    assert "repetition_penalty 1.0" in shown and "repetition_penalty 2.0" in shown and "seeds and items" not in shown


def test_one_model_may_be_asked_by_chat_and_raw_and_compared(folder, capfd):
    output = folder / "ways"
    arguments = _arguments(folder, output, "--config.compare_to=one")
    arguments[1] = f"--config.model=one:chat={folder / 'one'},one:raw={folder / 'one'},two:raw={folder / 'two'}"
    assert support.run_command(*arguments) == 0
    shown = capfd.readouterr().out
    assert "one (chat)" in shown and "one (raw)" in shown and "two (raw)" in shown
    with (output / "contrasts.csv").open() as file:
        pairs = {(row["system"], row["other"]) for row in csv.DictReader(file)}
    assert pairs == {("one (raw)", "one (chat)"), ("two (raw)", "one (chat)"), ("two (raw)", "one (raw)")}


@pytest.mark.slow
def test_a_model_that_was_fine_tuned_on_the_task_is_named_and_another_form_warned_of(folder, tmp_path, capfd):
    adapter = tmp_path / "adapter"
    own = [one for one in _arguments(folder, tmp_path / "out") if ".own." in one]
    learn = [
        "--config=configs/sft.py", f"--config.model={folder / 'one'}", "--config.task=starts",
        f"--config.output={adapter}",
        "--config.length=64", "--config.steps=1", "--config.batch_size=4", "--config.shots=2",
        "--config.own.target=output", *own,
    ]  # fmt: skip
    assert support.run_command(*learn) == 0
    learned = json.loads((adapter / "provenance.json").read_text())["learned"]
    assert learned[0]["task"] == "starts" and len(learned[0]["ids"]) == 2 and learned[0]["chat"] is True
    assert [f"starts/{id}" for id in learned[0]["ids"]] == json.loads((adapter / "few_shot.json").read_text())
    arguments = _arguments(folder, tmp_path / "out", "--config.limit=2")
    arguments[1] = f"--config.model=tuned={folder / 'one'}+{adapter}"
    assert support.run_command(*arguments) == 0
    said = capfd.readouterr().out
    assert "tuned was fine-tuned on 2 examples of starts@train, through the chat template" in said
    assert "WARNING: starts is asked as raw text" in said


def test_a_task_of_ones_own_may_be_named_among_the_tasks(folder):
    config = configs.evaluate.get_config()
    config.own.update({"name": "starts", "test": str(folder / "test.jsonl"), "train": str(folder / "train.jsonl")})
    for names in ("", "starts", "miniature_questions, starts"):
        config.tasks = names
        expected = ["miniature_questions@test"] * ("miniature" in names) + ["starts@test"]
        assert [one.name for one in read_task_data(config)] == expected
