"""Writes a blind sheet for human rating, and the key from answers to systems as a separate file."""

import random
from collections.abc import Sequence

from clinmerge_jax.evaluation.task_data import TaskData
from clinmerge_jax.results.records import Cell, ResultsFolder, csv_text
from clinmerge_jax.tasks.task import Kind

GENERATIONS = "generations"
SHEET, KEY = "human_sheet/sheet.csv", "human_sheet_key/key.csv"
_RATED = ("correct", "complete", "fluent", "remarks")


def folder_name(cell: Cell, key: str) -> str:
    """The folder name of a cell's files: readable, and made unique by the first 8 digits of its key."""
    parts = [cell.system, f"seed{cell.seed}", "chat" if cell.chat else "raw", f"{cell.shots}shots-{cell.example_seed}"]
    shown = ("".join(letter if letter.isalnum() or letter in "-." else "-" for letter in part) for part in parts)
    return "_".join([*shown, key[:8]])


def write(
    count: int, seed: int, cells: Sequence[Cell], answers: dict[Cell, dict[str, str]], asked: Sequence[TaskData],
    folder: ResultsFolder,
) -> int:  # fmt: skip
    """Writes the sheet and its key, both readable by the owner alone.

    Each row is an answer: its number, the item, the source, the reference answer if it is text, the answer, and empty
    columns for the ratings. Items are drawn by seed and are the same for all systems. The answers to an item are
    shuffled.

    Args:
      count: number of items of each task; a task with fewer gives all of its items.
      seed: seed of the draw.
      cells: the cells whose answers are rated.
      answers: the answers of each cell, by item id.
      asked: the tasks; multiple-choice tasks are left out.
      folder: the Results folder to write to.

    Returns:
      The number of answers written. 0 if there is a sheet already: it is kept, because it may hold ratings.
    """
    if (folder.path / SHEET).exists():
        return 0
    rng = random.Random(f"human sheet/{seed}")
    sheet, key = [], []
    for questions in asked:
        mine = [cell for cell in cells if cell.task == questions.name and cell in answers]
        if questions.task.kind is Kind.CHOICE or not mine:
            continue
        for item in rng.sample(list(questions.items), min(count, len(questions.items))):
            reference = item.target if isinstance(item.target, str) else ""
            for cell in rng.sample(mine, len(mine)):
                number = len(sheet) + 1
                text = answers[cell][item.id]
                sheet.append([number, f"{questions.name} {item.id}", item.source, reference, text, *[""] * len(_RATED)])
                key.append([number, questions.name, item.id, cell.system, cell.seed, cell.example_seed])
    folder.write(SHEET, csv_text(["number", "item", "source", "reference", "answer", *_RATED], sheet), private=True)
    folder.write(KEY, csv_text(["number", "task", "item", "system", "seed", "example_seed"], key), private=True)
    return len(sheet)
