"""The table of tasks."""

import dataclasses

from clinmerge_jax.data.sets.gsm8k import final_number
from clinmerge_jax.data.sets.multiple_choice import SUBJECTS
from clinmerge_jax.data.sets.pubmedqa import ANSWERS
from clinmerge_jax.data.sets.reading import LETTERS
from clinmerge_jax.data.sets.table import SETS
from clinmerge_jax.errors import BadInput
from clinmerge_jax.metrics import Metric, macro_f1
from clinmerge_jax.metrics import named as named_metrics
from clinmerge_jax.tasks.generated import GENERATED_SETS
from clinmerge_jax.tasks.instructions.tasks import FOLLOWING_TASKS
from clinmerge_jax.tasks.miniature.tasks import GENERATION, INSTRUCTIONS, JOINT_TASK, MINIATURE_TASKS, QUESTIONS
from clinmerge_jax.tasks.task import Form, Kind, Task

_OVERLAP = (
    "rougeL_unstemmed,rouge1_unstemmed,rouge2_unstemmed,rougeLsum_unstemmed,bleu,chrf_sentence,meteor_exact_stem,"
    "composite_rouge_bleu_meteor"
)
FORM = "length_ratio,never_stopped,repetition"  # shown beside every score of generated text
_CHOICE_FORM = Form("Question: {question}\n{choices}\nAnswer:")  # as in lm-eval
_CHOICE_TOKENS = 64  # maximum length of a generated answer from which the letter is read


def overlap_metrics(lead: str = "rougeL_unstemmed") -> tuple[Metric, ...]:
    """The usual metrics of generated text, with `lead` first."""
    rest = [name for name in _OVERLAP.split(",") if name != lead]
    return tuple(named_metrics(",".join([lead, *rest, FORM])))


def _generation(
    name: str, question: str, instruction: str, max_new_tokens: int, test: str = "test", ours: bool = False
) -> Task:
    """A text generation task. ROUGE-L leads with `ours` (a task not in the paper), the composite otherwise."""
    lead = "rougeL_unstemmed" if ours else "composite_rouge_bleu_meteor"
    form = Form(question, instruction)
    return Task(name, Kind.GENERATION, name, form, overlap_metrics(lead), test=test, max_new_tokens=max_new_tokens)


def _choice(name: str, form: Form = _CHOICE_FORM, macro: str = "") -> Task:
    """A multiple-choice task; `macro` has the letters over which F1 is averaged, "" for no F1."""
    metrics = (*named_metrics("accuracy"), *([macro_f1(macro)] if macro else []))
    return Task(name, Kind.CHOICE, name, form, metrics, max_new_tokens=_CHOICE_TOKENS, floors=False)


def _mmlu(subject: str) -> Task:
    topic = subject.replace("_", " ")
    instruction = f"The following are multiple choice questions (with answers) about {topic}."
    return _choice(f"mmlu_{subject}", Form("{question}\n{choices}\nAnswer:", instruction))


_VISIT = "Visit:\n{dialogue}\n\n"
_DIVISIONS = {
    "subjective": "Write the subjective part of the note of this visit: complaint, history, review of systems.",
    "objective_exam": "Write the physical examination in the note of this visit.",
    "objective_results": "Write the results of tests in the note of this visit.",
    "assessment_and_plan": "Write the assessment and plan in the note of this visit.",
}
_IMPRESSION = ("Findings:\n{findings}\n\nImpression:", "Write the impression of a radiology report from its findings.")
_QUESTION = ("Message:\n{question}\n\nQuestion:", "Put what this message about health asks into one short question.")

_ALL = (
    _generation(
        "mimic_bhc",
        "Note:\n{note}\n\nBrief hospital course:",
        "Summarize the hospital stay that this clinical note describes as a brief hospital course.",
        max_new_tokens=768,
    ),
    _generation(
        "aci_bench",
        _VISIT + "Note:",
        "Write the clinical note of this visit, in sections with headings.",
        max_new_tokens=1280,
        test="test1",
    ),
    _generation(
        "mts_dialog",
        "Section: {section_header}\nConversation:\n{dialogue}\n\nText:",
        "Write the section of a clinical note that follows from this conversation between doctor and patient.",
        max_new_tokens=320,
        test="test1",
    ),
    _generation("open_i", *_IMPRESSION, max_new_tokens=128),
    _generation("mimic_cxr", *_IMPRESSION, max_new_tokens=128),
    *(
        _generation(f"aci_bench_{name}", _VISIT + "Text:", text, max_new_tokens=768, test="test1")
        for name, text in _DIVISIONS.items()
    ),
    _generation("meqsum", *_QUESTION, max_new_tokens=64, ours=True),
    _generation("mediqa_qs", *_QUESTION, max_new_tokens=64, ours=True),
    _choice("medqa_4options"),
    _choice("medqa_5options"),
    _choice("medmcqa", Form("Question: {question}\nChoices:\n{choices}\nAnswer:")),
    _choice(
        "pubmedqa",
        Form("Abstract: {abstract}\nQuestion: {question}\n{choices}\nAnswer:"),
        macro=LETTERS[: len(ANSWERS)],
    ),
    *map(_mmlu, SUBJECTS),
    Task(
        "gsm8k",
        Kind.GENERATION,
        "gsm8k",
        Form("Question: {question}\nAnswer:"),
        tuple(named_metrics("exact_match,never_stopped")),
        stop=("Question:",),
        read=final_number,
        floors=False,
    ),
    *MINIATURE_TASKS.values(),
    *FOLLOWING_TASKS.values(),
)

TASKS: dict[str, Task] = {task.name: task for task in _ALL}

GROUPS: dict[str, tuple[str, ...]] = {
    "miniature": (*GENERATION, QUESTIONS, INSTRUCTIONS, JOINT_TASK),
    "miniature_clinical": GENERATION,
    "clinical": ("mimic_bhc", "aci_bench", "mts_dialog", "open_i", "mimic_cxr"),  # the paper's five tasks
    # The nine tasks of the Open Medical-LLM leaderboard.
    "medical": ("medmcqa", "medqa_4options", "pubmedqa", *(f"mmlu_{subject}" for subject in SUBJECTS)),
    "following": ("ifeval", "two_turn", *(name for name in FOLLOWING_TASKS if name.startswith("clinical_following"))),
}


def named(names: str) -> list[Task]:
    """The tasks that a config field lists, separated by commas.

    A name is one of `TASKS`; NAME@SPLIT for another split than the usual one, which is then the task's name; or one of
    `GROUPS`.

    Raises:
      BadInput: a name is unknown or named twice, or a task has no such split.
    """
    chosen: list[Task] = []
    for name in (name.strip() for name in names.split(",")):
        chosen += [TASKS[one] for one in GROUPS[name]] if name in GROUPS else [_one(name)]
    twice = [task.name for task in chosen if sum(other.name == task.name for other in chosen) > 1]
    if twice:
        raise BadInput(f"config.tasks: {twice[0]!r} is named twice; name it once")
    return chosen


def _one(name: str) -> Task:
    task_name, at, split = name.partition("@")
    if task_name not in TASKS:
        raise BadInput(f"config.tasks: {name!r} is unknown; choose from {', '.join([*GROUPS, *TASKS])}")
    task = TASKS[task_name]
    if not at:
        return task
    splits = GENERATED_SETS[task.dataset].splits if task.dataset in GENERATED_SETS else SETS[task.dataset].splits
    if split not in splits:
        raise BadInput(f"config.tasks: {name!r} names no split of {task_name}; choose from {', '.join(splits)}")
    return dataclasses.replace(task, name=name, test=split)
