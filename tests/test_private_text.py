"""Clinical text is private: a sentence planted in every input is found nowhere but where it may be."""

import json

import pytest
import support

from clinmerge_jax.data.sets.files import Source
from clinmerge_jax.tasks.items import items

CANARY = ("quokka", "zebra", "narwhal")  # words of the tokenizer; one after the other they stand in inputs alone
WORDS = (*support.WORDS, *CANARY, "A", "B")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %} {{ m.role }} {{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %} assistant {% endif %}"
)
SENTENCE = " ".join(CANARY)
SMALL = {"max_position_embeddings": 64, "eos_token_id": None, "vocab_size": len(WORDS)}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("private")
    for seed, name in enumerate(("one", "two")):
        support.write_llama(folder / name, seed, **SMALL)
        support.write_tokenizer(folder / name, WORDS, chat_template=TEMPLATE)
    rows = {
        "task": [
            {"input": f"the {SENTENCE} has", "output": f"a {SENTENCE} {word}"} for word in ("fever", "cough", "A")
        ],
        "train": [{"input": f"a {SENTENCE} {word}", "output": f"the {SENTENCE}"} for word in ("and", "B", ".")],
        "prompts": [{"prompt": f"the {SENTENCE}"}, {"messages": [{"role": "user", "content": f"a {SENTENCE}"}]}],
        "notes": [{"text": f"the {SENTENCE} has a fever"}, {"text": f"a cough and {SENTENCE}"}],
        "wrong": [{"input": f"{SENTENCE}", "answer": f"{SENTENCE}"}],
        "long": [{"input": f"{SENTENCE} " * 40, "output": f"{SENTENCE}", "prompt": f"{SENTENCE} " * 40}],
        "twice": [{"input": f"<s> {SENTENCE}", "output": f"{SENTENCE}"}],
    }
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def _evaluate(inputs, *more):
    return (
        "--config=configs/evaluate.py", f"--config.model=one={inputs / 'one'}", "--config.tasks=",
        f"--config.own.test={inputs / 'task.jsonl'}", f"--config.own.train={inputs / 'train.jsonl'}",
        "--config.own.metrics=rouge1_unstemmed", "--config.own.max_new_tokens=3", "--config.slots=8", *more,
    )  # fmt: skip


def _runs(inputs):
    """Each job's arguments, and the files of its output that may hold what it was given or what it wrote."""
    return {
        "merge": (
            ("--config=configs/merge.py", f"--config.instruct={inputs / 'one'}", f"--config.clinical={inputs / 'two'}",
             f"--config.evaluate=notes={inputs / 'notes.jsonl'}"),
            (),
        ),
        "generate": (
            ("--config=configs/generate.py", f"--config.model={inputs / 'one'}", "--config.slots=8",
             f"--config.prompts={inputs / 'prompts.jsonl'}", "--config.max_new_tokens=3"),
            ("answers.jsonl",),
        ),
        "sft": (
            ("--config=configs/sft.py:full", f"--config.model={inputs / 'one'}", "--config.length=32",
             f"--config.task={inputs / 'task.jsonl'}", f"--config.validation={inputs / 'notes.jsonl'}",
             "--config.steps=2", "--config.batch_size=8", "--config.save_every=1"),
            (),
        ),
        "evaluate": (_evaluate(inputs, "--config.shots=1"), ()),
        "evaluate, answers kept": (
            _evaluate(inputs, "--config.save_generations=True", "--config.human_sheet=2"),
            ("generations", "human_sheet"),
        ),
    }  # fmt: skip


def _check(folder, allowed):
    """Looks at every file, and at the names of all, for the words as text and as token ids."""
    ids = [WORDS.index(word) for word in CANARY]
    traces = [SENTENCE.encode(), json.dumps(ids).encode(), json.dumps(ids)[1:-1].encode(), "-".join(CANARY).encode()]
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    for path in files:
        if path.relative_to(folder).parts[0] in allowed:
            assert path.stat().st_mode & 0o077 == 0, f"{path} may hold private text, and others may read it"
            continue
        assert not any(trace in path.read_bytes() for trace in traces), path
        assert not any(word in str(path.relative_to(folder)) for word in CANARY)


@pytest.mark.parametrize("job", ["merge", "generate", "sft", "evaluate", "evaluate, answers kept"])
def test_no_job_passes_on_what_it_was_given(inputs, tmp_path, capfd, job):
    arguments, allowed = _runs(inputs)[job]
    output = tmp_path / "out"
    assert support.run_command(*arguments, f"--config.output={output}", "--config.offline=True") == 0
    said = capfd.readouterr()
    assert SENTENCE not in said.out + said.err
    _check(output, allowed)
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


@pytest.mark.parametrize(
    ("job", "change"),
    [
        ("merge", "--config.evaluate=notes={wrong}"),
        ("generate", "--config.prompts={wrong}"),
        ("generate", "--config.prompts={long}"),
        ("sft", "--config.task={wrong}"),
        ("evaluate", "--config.own.test={wrong}"),
        ("evaluate", "--config.own.test={long}"),
        ("evaluate", "--config.own.question={{input}} {{fever}}"),
    ],
)
def test_no_refusal_quotes_what_it_refuses(inputs, tmp_path, capfd, job, change):
    arguments, _ = _runs(inputs)[job]
    change = change.format(wrong=inputs / "wrong.jsonl", long=inputs / "long.jsonl")
    assert support.run_command(*arguments, change, f"--config.output={tmp_path / 'out'}") == 2
    said = capfd.readouterr()
    assert "error: " in said.err and not any(word in said.out + said.err for word in CANARY)
    assert not list(tmp_path.iterdir())


def test_a_template_twice_is_refused_without_quoting(inputs, tmp_path, capfd):
    change = (f"--config.own.test={inputs / 'twice.jsonl'}", "--config.chat_template=True")
    assert support.run_command(*_evaluate(inputs, *change, f"--config.output={tmp_path / 'out'}")) == 2
    said = capfd.readouterr()
    assert "the chat template would be applied twice" in said.err and "quokka" not in said.err


def test_prepared_records_are_the_owners_alone(tmp_path):
    place = tmp_path / "data"
    place.mkdir()
    header = "note_id,input,target,input_tokens,target_tokens\n"
    rows = "".join(f"{n}-DS-1,the {SENTENCE},a {SENTENCE},4,4\n" for n in range(30))
    (place / "mimic-iv-bhc.csv").write_text(header + rows)
    assert items("mimic_bhc", "test", Source(str(tmp_path / "data")))
    prepared = tmp_path / "data" / "prepared"
    assert all(path.stat().st_mode & 0o077 == 0 for path in (prepared, *prepared.rglob("*")))
