"""Writes one page with an example of everything in the miniature: corpora, tasks, references and baselines."""

from collections.abc import Sequence

from absl import logging
from ml_collections import ConfigDict

from clinmerge_jax.checkpoint.output import result_path, write_atomically
from clinmerge_jax.data.miniature import corpus
from clinmerge_jax.errors import BadInput
from clinmerge_jax.evaluation import scoring
from clinmerge_jax.instructions.target import InstructionTarget
from clinmerge_jax.miniature.facts import WORLD
from clinmerge_jax.report.tables import table
from clinmerge_jax.tasks.miniature.tasks import MINIATURE_TASKS, TASK_SPLITS, items_of
from clinmerge_jax.tasks.task import Item, Task

_CORPORA = {
    "copying": "from which the first model learns to copy words",
    "base": "the language of both sides, without the facts",
    "clinical": "documents that state the facts, no chat",
    "instruct": "everyday chat, no facts",
}
_EXAMPLES = 3  # documents of each corpus


def run(config: ConfigDict) -> None:
    """Writes the page, and says where it is."""
    path = result_path(config.output)
    if path.suffix != ".md":
        raise BadInput(f"config.output: {path} is not the name of a page; give one that ends in .md")
    logging.info("writing examples of %d corpora and %d tasks", len(_CORPORA), len(MINIATURE_TASKS))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page(config.seed).encode())
    print(f"The page is {path}.\nNext: python -m clinmerge_jax.main --config=configs/evaluate.py asks these tasks.")


def page(seed: int) -> str:
    """The page as Markdown; `seed` is that of the corpora's text."""
    disease = WORLD.diseases[0]
    parts = [
        "# The miniature: one example of everything",
        "## A row of the fact table",
        f"{disease.name}: findings {disease.findings[0]} and {disease.findings[1]}; {disease.test.name} is"
        f" {disease.level} (normal {disease.test.low}-{disease.test.high}); treated with {disease.drug}, or with"
        f" {disease.second_drug} where a past disease forbids that; whoever had it must not get {disease.forbids}.",
        "## Corpora",
    ]
    for name, purpose in _CORPORA.items():
        parts.append(f"### {name}: {purpose}")
        for document in corpus(name, seed, _EXAMPLES):
            turns = document.messages or [{"role": "", "content": document.text}]
            parts.append(_quoted("\n\n".join(f"[{t['role']}]\n{t['content']}".removeprefix("[]\n") for t in turns)))
    parts.append("## Tasks, with the first item of each split that is asked")
    for task in MINIATURE_TASKS.values():
        parts.append(f"### {task.name}")
        for split in TASK_SPLITS[task.name][1:]:
            items = items_of(task.name, split)
            prompt = task.form.question.format_map(items[0].fields)
            parts.append(
                f"{split}, {len(items)} items:\n\n{_quoted(prompt)}\n\nReference:\n\n{_quoted(_shown(items[0]))}"
            )
        parts.append(_baselines(task, items_of(task.name, "test")))
    return "\n\n".join(parts) + "\n"


def _shown(item: Item) -> str:
    target = item.target.reference if isinstance(item.target, InstructionTarget) else item.target
    return item.shown or target


def _baselines(task: Task, items: Sequence[Item]) -> str:
    metrics = scoring.metrics_of(task, False)
    rows = []
    for name, outputs in scoring.trivial_baselines(task, items, ()).items():
        counts = scoring.floor(task, metrics, items, name, outputs)
        scores = [float(metric.score(counts[metric.name].sum(axis=0))) for metric in metrics]
        rows.append([name, *(f"{score:.1f}" for score in scores)])
    return table(["answers without a model", *(metric.name for metric in metrics)], rows)


def _quoted(text: str) -> str:
    return f"```\n{text}\n```"
