"""The generate job: answers in order, once each, whatever happens to the process."""

import json
import os
import signal
import stat
import subprocess
import sys
import time

import pytest
import support

from clinmerge_jax.jobs.generate import ANSWERS_FILE

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %} {{ m.role }} {{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %} assistant{% endif %}"
)
PROMPTS = [" ".join(support.WORDS[3 + (i * 7 + j) % 9] for j in range(1 + i % 5)) for i in range(40)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generate")
    support.write_llama(folder / "model", max_position_embeddings=64, eos_token_id=None, vocab_size=len(support.WORDS))
    support.write_tokenizer(folder / "model", chat_template=TEMPLATE)
    rows = [{"prompt": prompt, "id": f"p{index}"} for index, prompt in enumerate(PROMPTS)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _arguments(folder, output, *more):
    return [
        "--config=configs/generate.py",
        f"--config.model={folder / 'model'}",
        f"--config.prompts={folder / 'prompts.jsonl'}",
        f"--config.output={output}",
        "--config.max_new_tokens=20",
        "--config.slots=8",
        *more,
    ]


def _answers(output):
    return [json.loads(line) for line in (output / ANSWERS_FILE).read_text().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(folder, repository):
    output = folder / "undisturbed"
    process = support.run_process(repository, *_arguments(folder, output))
    assert process.returncode == 0, process.stderr
    return _answers(output), process


def test_answers_come_in_the_order_of_the_prompts_with_their_ids(undisturbed, folder):
    answers, process = undisturbed
    assert [row["id"] for row in answers] == [f"p{index}" for index in range(len(PROMPTS))]
    assert all(row["tokens"] == 20 and not row["finished"] and row["answer"] for row in answers)
    assert "tokens/s" in process.stderr and "of the decoded rows were live" in process.stdout
    assert "40 answers, 40 of them cut at 20 tokens" in process.stdout
    mode = stat.S_IMODE(os.stat(folder / "undisturbed" / ANSWERS_FILE).st_mode)
    assert mode == 0o600
    provenance = (folder / "undisturbed" / "provenance.json").read_text()
    assert not any(prompt in provenance for prompt in PROMPTS if len(prompt.split()) > 2)


def test_a_second_run_finds_the_answers(undisturbed, folder, capfd):
    assert support.run_command(*_arguments(folder, folder / "undisturbed")) == 0
    assert "is finished already" in capfd.readouterr().out
    assert support.run_command(*_arguments(folder, folder / "undisturbed", "--config.temperature=1.0")) == 2


@pytest.mark.slow  # tests/test_full_disk.py has a run that goes on every time
def test_a_killed_run_goes_on_without_losing_or_repeating_an_answer(undisturbed, folder, repository):
    output = folder / "killed"
    partial = output.with_name(".killed.partial") / "answers-as-they-finish.jsonl"
    command = [sys.executable, "-m", "clinmerge_jax.main", *_arguments(folder, output)]
    process = subprocess.Popen(command, cwd=repository, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (partial.is_file() and partial.read_bytes().count(b"\n") >= 3) and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not output.exists()
    there = partial.read_bytes()
    assert 3 <= there.count(b"\n") < len(PROMPTS)
    partial.write_bytes(there[: there.rfind(b"\n", 0, -1) + 5])  # as if it had died within its last line
    again = support.run_process(repository, *_arguments(folder, output))
    assert again.returncode == 0, again.stderr
    assert "continuing the interrupted run" in again.stderr
    assert _answers(output) == undisturbed[0]
    assert sorted(path.name for path in output.iterdir()) == [ANSWERS_FILE, "provenance.json"]


@pytest.mark.slow
def test_stop_texts_and_chat_templates(undisturbed, folder, capfd):
    stop = undisturbed[0][0]["answer"].split()[3]
    out = folder / "stopped"
    assert support.run_command(*_arguments(folder, out, f"--config.stop=('{stop}',)", "--config.limit=5")) == 0
    for row, whole in zip(_answers(out), undisturbed[0]):
        assert whole["answer"].startswith(row["answer"]) and stop not in row["answer"]
        assert row["finished"] == (stop in whole["answer"])
    assert support.run_command(*_arguments(folder, folder / "chat", "--config.chat_template=True")) == 0
    assert _answers(folder / "chat") != undisturbed[0]


def test_sampled_answers_depend_on_the_seed_alone(folder):
    more = ["--config.temperature=1.0", "--config.limit=6"]
    found = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert support.run_command(*_arguments(folder, folder / name, *more, f"--config.seed={seed}")) == 0
        found.append(_answers(folder / name))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("field", "problem"),
    [
        ("max_new_tokens=70", "tokens and 70 new ones exceed the model context of 64"),
        ("length=10", "exceed config.length of 10"),
        ("max_new_tokens=0", "config.max_new_tokens: is 0"),
        ("temperature=-1.0", "config.temperature: is -1"),
        ("top_p=0.0", "config.top_p: is 0"),
        ("slots=0", "config.slots: is 0"),
        ("attention=flash", "config.attention: 'flash' is unknown"),
        ("attention=ragged", "config.attention: ragged needs a TPU, but this is a CPU"),
        ("attention=cudnn", "config.attention: cudnn does not attend over the cache; give auto or ragged or reference"),
        ("dtype=int8", "config.dtype: 'int8' is unknown"),
        ("limit=-1", "config.limit: is -1"),
        ("prompts=nowhere.jsonl", "config.prompts: nowhere.jsonl is not a file"),
        ("model=nowhere", "config.model: "),
    ],
)
def test_bad_input_is_refused_in_one_line_and_leaves_nothing(folder, capfd, field, problem):
    output = folder / "bad"
    assert support.run_command(*_arguments(folder, output), f"--config.{field}") == 2
    err = capfd.readouterr().err
    assert problem in err and err.splitlines()[-1].startswith("error: ")
    assert not output.exists() and not output.with_name(".bad.partial").exists()


@pytest.mark.slow
def test_the_default_run_answers_the_miniatures_questions(repository, tmp_path):
    process = support.run_process(
        repository, "--config=configs/generate.py", "--config.limit=8", f"--config.output={tmp_path / 'out'}"
    )
    assert process.returncode == 0, process.stderr
    answers = _answers(tmp_path / "out")
    assert len(answers) == 8 and sum(row["finished"] for row in answers) >= 6
