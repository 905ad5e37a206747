"""Tasks in the miniature's invented world, one for each specialist, scored on combinations not in its training."""

from clinmerge_jax.data.miniature import corpus
from clinmerge_jax.metrics import named
from clinmerge_jax.tasks.task import Form, Item, Kind, Task

_SEEDS = {"train": 3, "test": 4}  # documents that the shipped models were neither trained nor measured on
_DOCUMENTS = {"train": 400, "test": 600}
_ENDS = ("\nIMPRESSION:", "\nAssessment:")  # the headings before a note's conclusion

NOTES = Task(
    name="miniature_notes",
    kind=Kind.GENERATION,
    dataset="miniature_notes",
    form=Form("{note}"),
    metrics=tuple(named("rouge1_unstemmed,rougeL_unstemmed,exact_match,length_ratio,never_stopped,repetition")),
    max_new_tokens=48,
    chat=False,
    shareable=True,
)
CHAT = Task(
    name="miniature_chat",
    kind=Kind.GENERATION,
    dataset="miniature_chat",
    form=Form("{question}"),
    metrics=tuple(named("exact_match,rougeL_unstemmed,length_ratio,never_stopped,repetition")),
    max_new_tokens=32,
    chat=True,
    shareable=True,
)


def notes(split: str) -> list[Item]:
    """Notes up to their conclusion; the conclusion is the target."""
    items = []
    for index, document in enumerate(corpus("clinical", _SEEDS[split], _DOCUMENTS[split], split == "test")):
        for end in _ENDS:
            before, found, after = document.text.partition(end)
            if found:
                note = before + end
                items.append(Item(f"{split}-{index}", document.name, {"note": note}, note, after.strip()))
    return items


def chat(split: str) -> list[Item]:
    """Everyday questions with a constraint; the only right answer is the target."""
    items = []
    for index, document in enumerate(corpus("instruct", _SEEDS[split], _DOCUMENTS[split], split == "test")):
        question, target = (message["content"] for message in document.messages[:2])
        items.append(Item(f"{split}-{index}", document.name, {"question": question}, question, target))
    return items
