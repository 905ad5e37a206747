"""Instruction-following tasks and their items: IFEval, part of IFBench, and the generated sets."""

from typing import Any

from absl import logging

from clinmerge_jax.data.sets.files import Source
from clinmerge_jax.errors import BadInput
from clinmerge_jax.instructions.scores import FOLLOWING
from clinmerge_jax.metrics import named as named_metrics
from clinmerge_jax.metrics.form import length_ratio
from clinmerge_jax.metrics.metric import Metric
from clinmerge_jax.tasks.instructions.clinical import clinical_items
from clinmerge_jax.tasks.instructions.clinical_scores import CLINICAL, JOINT, floors, on_reference
from clinmerge_jax.tasks.instructions.data import read_ifbench, read_prompts
from clinmerge_jax.tasks.instructions.development import development_items
from clinmerge_jax.tasks.instructions.two_turn import second_turn, two_turn_items
from clinmerge_jax.tasks.items import items
from clinmerge_jax.tasks.task import Form, Item, Kind, Task

SEED = 0
_CLINICAL = "clinical_following_"
# For each data set and split: the number of items, and the splits of the data set that provide the inputs.
_COUNTS = {
    "mts_dialog": {"test": 200, "dev": 100},
    "aci_bench": {"test": 120, "dev": 40},
    "meqsum": {"test": 180, "dev": 100},
}
_INPUTS = {
    "mts_dialog": {"test": ("test1", "test2"), "dev": ("valid",)},
    "aci_bench": {"test": ("test1", "test2", "test3"), "dev": ("valid",)},
    "meqsum": {"test": ("test",), "dev": ("train",)},
}
_MAX_NEW_TOKENS = {"mts_dialog": 512, "aci_bench": 1536, "meqsum": 192}
_CLINICAL_FORM = Form("{before}{text}{after}", joint="\n\n")


def _task(name: str, metrics: tuple[Metric, ...], max_new_tokens: int, **more: Any) -> Task:
    shown = (*metrics, *named_metrics("never_stopped"))
    form = more.pop("form", Form("{prompt}", joint="\n\n"))
    return Task(name, Kind.GENERATION, name, form, shown, train="", max_new_tokens=max_new_tokens, **more)


_FOLLOWING = tuple(FOLLOWING.values())
_BOTH = (JOINT, CLINICAL, *_FOLLOWING, on_reference(length_ratio()))

FOLLOWING_TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _task("ifeval", _FOLLOWING, 1280),
        _task("ifbench_defined", _FOLLOWING, 1280),
        _task("following_development", _FOLLOWING, 1024),
        _task("two_turn", (second_turn(),), 256, floors=False),
        *(
            _task(f"{_CLINICAL}{name}", _BOTH, most, form=_CLINICAL_FORM, trivial_baselines=floors)
            for name, most in _MAX_NEW_TOKENS.items()
        ),
    )
}
SPLITS: dict[str, tuple[str, ...]] = {
    name: ("test", "dev") if name.startswith(_CLINICAL) else ("test",) for name in FOLLOWING_TASKS
}


def items_of(name: str, source: Source, split: str = "test") -> list[Item]:
    """Read or generate the items of one of `FOLLOWING_TASKS`.

    IFBench prompts with a kind of instruction whose rule is not defined are left out, and counted in the log.

    Args:
      name: name of the task.
      source: location of the published files; `following_development` and `two_turn` need none.
      split: "test", or "dev" of a clinical task, on which settings may be chosen.

    Raises:
      BadInput: the task has no such split, or files are missing or malformed.
    """
    if split not in SPLITS[name]:
        raise BadInput(f"config.tasks: {name} has no split {split}; choose {' or '.join(SPLITS[name])}")
    if name == "following_development":
        return development_items(SEED)
    if name == "two_turn":
        return two_turn_items(SEED)
    if name == "ifeval":
        return read_prompts(str(source.folder / "ifeval" / "input_data.jsonl"), "config.data_dir")
    if name == "ifbench_defined":
        defined, left_out = read_ifbench(str(source.folder / "ifbench" / "IFBench_test.jsonl"), "config.data_dir")
        logging.info("ifbench_defined: %d prompts; kinds without a rule: %s", len(defined), dict(left_out))
        return defined
    dataset = name.removeprefix(_CLINICAL)
    inputs = [item for part in _INPUTS[dataset][split] for item in items(dataset, part, source)]
    return clinical_items(dataset, inputs, SEED, _COUNTS[dataset][split], split)
