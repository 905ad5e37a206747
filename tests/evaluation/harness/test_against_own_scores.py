"""The same model's MedQA and IFEval by lm-eval, through our engine, and by our own job: item for item."""

import os

import jax
import pytest

from clinmerge_jax.data.sets.files import Source
from clinmerge_jax.evaluation.answering import GENERATED, LETTERS, Evaluator
from clinmerge_jax.evaluation.harness.run import run_harness
from clinmerge_jax.evaluation.harness.tasks import load_tasks
from clinmerge_jax.evaluation.systems import parse_systems
from clinmerge_jax.evaluation.task_data import read_tasks
from clinmerge_jax.instructions.scores import strict

# Kinds whose verdict lm-eval leaves to chance: langdetect without a seed, a letter that it draws.
_DRAWN = ("change_case:english_lowercase", "change_case:english_capital", "language:response_language")
_DRAWN_KEYS = ("1122", "1129")
_NEW_TOKENS = 128


@pytest.fixture(scope="module")
def evaluator(repository):
    import importlib.util

    spec = importlib.util.spec_from_file_location("evaluate_config", repository / "configs" / "evaluate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.too_long, config.dtype, config.max_new_tokens = "cut", "float32", _NEW_TOKENS
    (system,) = parse_systems("miniature:instruct")
    with jax.default_matmul_precision("highest"):
        evaluator = Evaluator(system, config)
        evaluator.load(evaluator.longest)
        yield evaluator


def _ours(evaluator, name, shared, tmp_path, limit, chat, mode):
    (questions,) = read_tasks(name, Source(str(shared / "data"), str(tmp_path)), limit)
    asked = evaluator.ask(questions.task, questions.items, [], chat, mode)
    outputs, _ = evaluator.answers(asked, 0, lambda _: None)
    return questions.items, outputs, [prompt.cut for prompt in asked.prompts]


def _theirs(evaluator, name, shared, limit, chat):
    tasks = load_tasks([name], data_dir=str(shared / "data"))
    engine = evaluator.engine(evaluator.longest, with_eos=True)
    found = run_harness(
        engine, evaluator.tokenizer, tasks, limit=limit, chat_template=chat, samples=True,
        gen_kwargs={"max_gen_toks": _NEW_TOKENS} if name == "ifeval" else None,
    )  # fmt: skip
    return sorted(found["samples"][name], key=lambda sample: sample["doc_id"]), found["results"][name]


@pytest.mark.slow
@pytest.mark.parametrize("chat", [False, True])
def test_medqa_by_letters_is_the_same_but_for_questions_that_are_cut_otherwise(
    evaluator, shared, tmp_path, figures, chat
):
    limit = 200
    items, outputs, cut = _ours(evaluator, "medqa_4options", shared, tmp_path, limit, chat, LETTERS)
    samples, results = _theirs(evaluator, "medqa_4options", shared, limit, chat)
    differ = []
    for index, (item, output, sample) in enumerate(zip(items, outputs, samples, strict=True)):
        likelihoods = [float(response[0]) for response in sample["filtered_resps"]]
        letter = "ABCD"[likelihoods.index(max(likelihoods))]
        if letter != output.text:
            differ.append(index)
            assert cut[index], f"{item.name}: {output.text} here, {letter} there"
    right = sum(output.text == item.target for item, output in zip(items, outputs)) / limit
    figures.append(
        f"MedQA by letters, chat {chat}: ours {right:.3f}, lm-eval {results['acc,none']:.3f}; {len(differ)} of {limit}"
        f" letters differ, all of the {sum(cut)} questions that do not fit, which lm-eval cuts from the left"
    )


@pytest.mark.slow
def test_ifeval_is_the_same_but_for_prompts_that_are_cut_and_verdicts_that_are_drawn(
    evaluator, shared, tmp_path, figures, monkeypatch
):
    folder = os.environ.get("CLINMERGE_NLTK_DATA")
    if folder is None:
        pytest.skip("CLINMERGE_NLTK_DATA does not name a folder with tokenizers/punkt_tab")
    import nltk

    monkeypatch.setattr(nltk.data, "path", [folder])
    items, outputs, cut = _ours(evaluator, "ifeval", shared, tmp_path, 0, True, GENERATED)
    samples, results = _theirs(evaluator, "ifeval", shared, 0, True)
    drawn, texts = [], 0
    for item, output, sample, shortened in zip(items, outputs, samples, cut, strict=True):
        text = sample["filtered_resps"][0].strip()
        if text != output.text:
            texts += 1
            assert shortened, f"{item.name}: another answer"
            continue
        ours = strict(item.target, output.text)
        for instruction, one, other in zip(item.target.instructions, ours, sample["inst_level_strict_acc"]):
            if one != other:
                assert instruction.id in _DRAWN or item.id in _DRAWN_KEYS, f"{item.name}: {instruction.id}"
                drawn.append((item.id, instruction.id))
    share = sum(all(strict(item.target, output.text)) for item, output in zip(items, outputs)) / len(items)
    figures.append(
        f"IFEval, chat, {_NEW_TOKENS} new tokens: prompt strict ours {share:.4f}, lm-eval"
        f" {results['prompt_level_strict_acc,none']:.4f}; {texts} of {len(items)} answers differ ({sum(cut)} prompts"
        f" are cut), verdicts that differ: {drawn}"
    )
