"""The tasks of instruction following, and their items: IFEval, a development set, two turns, and clinical inputs."""

from clinmerge_jax.data.sets.files import Source
from clinmerge_jax.errors import BadInput
from clinmerge_jax.evaluation.instructions.clinical import clinical_items
from clinmerge_jax.evaluation.instructions.clinical_scores import CLINICAL, JOINT, on_reference
from clinmerge_jax.evaluation.instructions.data import read_prompts
from clinmerge_jax.evaluation.instructions.development import development_items
from clinmerge_jax.evaluation.instructions.following import FOLLOWING
from clinmerge_jax.evaluation.instructions.two_turn import second_turn, two_turn_items
from clinmerge_jax.evaluation.metrics import named as named_metrics
from clinmerge_jax.evaluation.metrics.form import length_ratio
from clinmerge_jax.evaluation.metrics.metric import Metric
from clinmerge_jax.evaluation.tasks.items import items
from clinmerge_jax.evaluation.tasks.task import Form, Item, Kind, Task

SEED = 0
_CLINICAL = "clinical_following_"
# Of each data set: how many items of the test, of development, and the splits whose inputs they take.
_COUNTS = {"mts_dialog": (200, 60), "aci_bench": (120, 20), "meqsum": (180, 100)}
_SPLITS = {
    "mts_dialog": {"test": ("test1", "test2"), "dev": ("valid",)},
    "aci_bench": {"test": ("test1", "test2", "test3"), "dev": ("valid",)},
    "meqsum": {"test": ("test",), "dev": ("train",)},
}
_MAX_NEW_TOKENS = {"mts_dialog": 512, "aci_bench": 1536, "meqsum": 192}
_FORM = Form("{prompt}", joint="\n\n")


def _task(name: str, dataset: str, lead: tuple[Metric, ...], max_new_tokens: int = 1024) -> Task:
    metrics = (*lead, *named_metrics("never_stopped"))
    return Task(name, Kind.GENERATION, dataset, _FORM, metrics, train="", max_new_tokens=max_new_tokens, floors=False)


_BOTH = (JOINT, CLINICAL, *FOLLOWING.values(), on_reference(length_ratio()))

FOLLOWING_TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _task("ifeval", "ifeval", tuple(FOLLOWING.values()), 1280),
        _task("following_development", "", tuple(FOLLOWING.values())),
        _task("two_turn", "", (second_turn(),), 256),
        *(_task(f"{_CLINICAL}{dataset}", dataset, _BOTH, limit) for dataset, limit in _MAX_NEW_TOKENS.items()),
    )
}


def items_of(name: str, source: Source, split: str = "test") -> list[Item]:
    """The items of one of `FOLLOWING_TASKS`.

    Args:
      name: of the task.
      source: where the data sets lie; what is generated needs none.
      split: "test", or "dev" of a clinical task, on which settings may be chosen.

    Raises:
      BadInput: the split is not one of the task, or files are missing or not as they should be.
    """
    dataset = name.removeprefix(_CLINICAL)
    if split != "test" and (split != "dev" or dataset not in _SPLITS):
        raise BadInput(f"config.tasks: {name} has no split {split}; take test")
    if dataset in _SPLITS:
        inputs = [item for part in _SPLITS[dataset][split] for item in items(dataset, part, source)]
        return clinical_items(dataset, inputs, SEED, _COUNTS[dataset][split == "dev"], split)
    if name == "following_development":
        return development_items(SEED)
    if name == "two_turn":
        return two_turn_items(SEED)
    return read_prompts(str(source.folder / "ifeval" / "input_data.jsonl"), "data_dir")
