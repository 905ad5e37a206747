"""What is learned of a task is what the evaluation asks of it: its prompts, then the answer, then the end of turn."""

import copy

import numpy as np
import published_rows
import pytest

import configs.sft
from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.tokenizers.tokenizer import load_tokenizer
from clinmerge_jax.data.sets.table import SETS
from clinmerge_jax.errors import BadInput
from clinmerge_jax.fine_tuning.learned import Reader, refuse_unused_own
from clinmerge_jax.generation.stopping import stop_ids
from clinmerge_jax.jobs import sft
from clinmerge_jax.tasks.generated import GENERATED_SETS
from clinmerge_jax.tasks.prompting import Prompter
from clinmerge_jax.tasks.table import TASKS
from clinmerge_jax.tasks.task import Kind

CHATML = (
    "{% for m in messages %}{{ bos_token }}{{ m.role }}\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}{{ bos_token }}assistant\n{% endif %}"
)
_TRAINABLE = [
    name for name, task in TASKS.items() if task.train and (not name.startswith("mmlu") or name == "mmlu_anatomy")
]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    with published_rows.all_families(tmp_path_factory) as folder:
        yield folder


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory):
    """MTS-Dialog with conversations of their own in each split, but for one of test2 that is in train too."""
    folder = tmp_path_factory.mktemp("dialogues")
    names = ("TrainingSet", "ValidationSet", "TestSet-1-MEDIQA-Chat-2023", "TestSet-2-MEDIQA-Sum-2023")
    for place, name in enumerate(names):
        rows = []
        for number in range(5):
            days = " and ".join(f"day {place}{number}{k}" for k in range(3 + 4 * number))
            rows.append({
                "ID": str(number),
                "section_header": "GENHX",
                "section_text": f"Ill for {number + 2} days.",
                "dialogue": f"Doctor: How long? Patient: {days}.",
            })  # fmt: skip
        if place in (0, 3):
            rows[3]["dialogue"] = "Doctor: Hello. Patient: Hello."
        published_rows.write_csv(folder / "mts_dialog" / f"MTS-Dialog-{name}.csv", rows)
    with published_rows.without_digests():
        yield folder


@pytest.fixture(scope="module")
def instruct():
    checkpoint = open_checkpoint("miniature:instruct", "config.model")
    return load_tokenizer(checkpoint.path, "config.model"), stop_ids(checkpoint)


def _reader(data_dir, instruct, length=2000, **fields):
    config = configs.sft.get_config()
    with config.unlocked():
        for name, value in {"data_dir": str(data_dir), "offline": True, **fields}.items():
            config[name] = value
    tokenizer, ends = instruct
    return Reader(config, tokenizer, ends, length)


def _split(name):
    """One that the made-up files have."""
    task = TASKS[name]
    if task.dataset in GENERATED_SETS:
        return "train"
    return task.train if task.train in SETS[task.dataset].splits else next(iter(SETS[task.dataset].splits))


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("name", _TRAINABLE)
def test_the_tokens_learned_are_the_tokens_asked_then_the_answer_then_the_end_of_turn(data_dir, instruct, name, chat):
    tokenizer, ends = instruct
    reader = _reader(data_dir, instruct, chat_template=chat)
    (one,) = reader.read(f"{name}@{_split(name)}", "config.validation")
    task = TASKS[name]
    used = chat if task.chat is None else task.chat
    items, _ = reader._items(task, _split(name), "config.task")
    asked = Prompter(task, tokenizer, used, (), 2000, cut=False)
    assert len(one.documents) == len(items)
    for item, document in list(zip(items, one.documents))[:20]:
        encoded = one.encode(document)
        prompt = asked.prompt(item, letters=task.kind is Kind.CHOICE)
        count = len(prompt.tokens)
        assert encoded.tokens[:count].tolist() == prompt.tokens.tolist()
        assert encoded.targets.tolist() == [False] * count + [True] * (len(encoded.tokens) - count)
        learned = encoded.tokens[count:]
        due = item.target if item.shown is None else item.shown
        assert tokenizer.decode(learned[:-1]).strip() == due and learned[-1] in ends
        if task.kind is Kind.CHOICE:
            letter = prompt.answers["ABCDE".index(item.target)]
            assert learned[:-1].tolist() == letter.tolist()
        assert not encoded.shortened


def test_a_choice_may_be_learned_with_its_text(data_dir, instruct):
    (one,) = _reader(data_dir, instruct, answer="text").read("medqa_4options@train", "config.validation")
    document = one.documents[0]
    text = instruct[0].decode(one.encode(document).tokens)
    letter, _, option = document.completion.partition(". ")
    assert letter in "ABCD" and f"{letter}. {option}\n" in text and f"{letter}. {option}<" in text


def test_a_template_that_puts_a_line_break_behind_the_end_of_turn_ends_there(dialogues, instruct):
    tokenizer = copy.deepcopy(instruct[0])
    tokenizer.chat_template = CHATML
    (one,) = _reader(dialogues, (tokenizer, (tokenizer.eos_token_id,))).read("mts_dialog", "config.task")
    tokens = one.encode(one.documents[0]).tokens
    assert tokens[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("chat", [False, True])
def test_where_nothing_ends_an_answer_an_end_is_learned_that_generation_stops_at(dialogues, instruct, chat):
    tokenizer = copy.deepcopy(instruct[0])
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    stop = tokenizer.convert_tokens_to_ids("a")
    for ends, end in (((stop,), stop), ((stop, tokenizer.eos_token_id), tokenizer.eos_token_id)):
        (one,) = _reader(dialogues, (tokenizer, ends), chat_template=chat).read("mts_dialog", "config.task")
        assert one.encode(one.documents[0]).tokens[-1] == end


def test_inputs_are_shortened_and_answers_are_not(dialogues, instruct):
    (whole,) = _reader(dialogues, instruct).read("mts_dialog", "config.task")
    document = max(whole.documents, key=lambda document: len(document.prompt))
    full = whole.encode(document)
    answer = full.tokens[full.targets].tolist()
    (one,) = _reader(dialogues, instruct, length=len(full.tokens) - 3).read("mts_dialog", "config.task")
    cut = one.encode(document)
    assert cut.shortened and len(cut.tokens) <= len(full.tokens) - 3 and cut.tokens[cut.targets].tolist() == answer
    with pytest.raises(BadInput, match="and config.length is .*; set config.too_long=cut"):
        refusing = _reader(dialogues, instruct, len(full.tokens) - 3, too_long="refuse")
        refusing.read("mts_dialog", "config.task")[0].encode(document)
    (one,) = _reader(dialogues, instruct, length=len(answer) + 1).read("mts_dialog", "config.task")
    with pytest.raises(BadInput, match=r"TrainingSet.csv.*its answer, which is never cut") as refused:
        one.encode(document)
    assert document.prompt.split()[3] not in str(refused.value)


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if not task.train])
def test_tasks_without_answers_are_refused_by_name(dialogues, instruct, name):
    with pytest.raises(BadInput, match=f"config.task: {name} has no answers to learn; choose from .*mts_dialog"):
        _reader(dialogues, instruct).read(name, "config.task")


def test_what_is_asked_in_any_split_is_not_learned(dialogues, instruct):
    (one,) = _reader(dialogues, instruct).read("mts_dialog", "config.task")
    assert [document.id for document in one.documents] == [f"mts_dialog/train-{number}" for number in (0, 1, 2, 4)]
    assert one.learned(one.documents[:2]).ids == ("train-0", "train-1")


def test_what_is_learned_under_a_use_agreement_is_credentialed(data_dir, instruct):
    for name, expected in (("mimic_cxr@train", True), ("aci_bench@train", False)):
        (one,) = _reader(data_dir, instruct).read(name, "config.validation")
        assert one.credentialed is expected


def test_sets_with_shares_and_groups(dialogues, instruct):
    reader = _reader(dialogues, instruct)
    sets = reader.read("mts_dialog=3, mts_dialog@valid=1", "config.task")
    assert [(one.name, one.share) for one in sets] == [("mts_dialog@train", 3), ("mts_dialog@valid", 1)]
    assert sets[0].about.task == "mts_dialog" and sets[0].about.chat
    assert all(not one.credentialed for one in sets)


@pytest.mark.parametrize(
    "spec, field, line",
    [
        ("mts_dialog=1,mts_dialog@valid", "config.task", "gives shares to some"),
        ("mts_dialog=0", "config.task", "has the share 0"),
        ("mts_dialog,mts_dialog@train", "config.task", "mts_dialog@train is named twice"),
        ("mts_dialog@nowhere", "config.task", "has no split 'nowhere' here; choose from train, valid"),
        ("mts_dialog", "config.validation", "has no default split; give mts_dialog@SPLIT"),
    ],
)
def test_bad_lists_are_refused(dialogues, instruct, spec, field, line):
    with pytest.raises(BadInput, match=f"{field}: .*{line}"):
        _reader(dialogues, instruct).read(spec, field)


def test_a_users_own_task_is_learned_as_it_is_asked(tmp_path, instruct):
    rows = [{"id": str(i), "question": f"how long does cold {i} last?", "summary": f"{i} days"} for i in range(4)]
    file = published_rows.write_lines(tmp_path / "train.jsonl", rows)
    reader = _reader(tmp_path, instruct)
    reader.config.own.update(
        {"name": "summaries", "train": str(file), "source": "question", "target": "summary",
         "instruction": "Be short.", "question": "Q: {question} A:"}
    )  # fmt: skip
    (one,) = reader.read("summaries", "config.task")
    assert [document.id for document in one.documents] == [f"summaries/{i}" for i in range(4)]
    text = instruct[0].decode(one.encode(one.documents[1]).tokens)
    assert "Be short.\n\nQ: how long does cold 1 last? A:" in text and "1 days" in text
    assert np.count_nonzero(one.encode(one.documents[1]).targets) < 12


def test_a_described_task_that_nothing_is_learned_from_is_refused():
    config = configs.sft.get_config()
    refuse_unused_own(config)
    config.own.update({"name": "summaries", "train": "train.csv"})
    with pytest.raises(BadInput, match="^config.own: describes the task 'summaries', .* --config.task=summaries$"):
        refuse_unused_own(config)
    for field in ("task", "validation"):
        named = configs.sft.get_config()
        named.own.update({"name": "summaries", "train": "train.csv"})
        named[field] = "mts_dialog=0.5,summaries@train=0.5"
        refuse_unused_own(named)


@pytest.mark.parametrize(
    "task, due",
    [
        ("mts_dialog@valid,medqa_4options", "mts_dialog,medqa_4options"),
        ("summaries", "summaries and the same --config.own flags"),
        ("rows.jsonl", "TASK"),
    ],
)
def test_the_next_step_names_what_was_learned(task, due):
    config = configs.sft.get_config()
    config.own.update({"name": "summaries", "train": "train.csv"})
    config.task = task
    assert sft._evaluated(config) == due
