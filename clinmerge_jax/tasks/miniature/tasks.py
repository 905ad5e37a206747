"""The miniature's tasks: five of clinical generation, medical questions, everyday instructions, and both together.

The generation tasks have the shapes of the paper's five (see `miniature.clinical`). All are shareable: the world is
made up.
"""

from collections.abc import Callable, Sequence

from clinmerge_jax.instructions.scores import FOLLOWING
from clinmerge_jax.metrics import Output
from clinmerge_jax.metrics import named as named_metrics
from clinmerge_jax.miniature import shapes
from clinmerge_jax.miniature.clinical import SHAPES
from clinmerge_jax.miniature.facts import SPLITS
from clinmerge_jax.tasks.miniature.items import UNSEEN, clinical_items, instruction_items, joint_items, question_items
from clinmerge_jax.tasks.miniature.scores import FACT_F1, FOLLOWED_AND_RIGHT, INVENTED, JOINT
from clinmerge_jax.tasks.task import Form, Item, Kind, Task

_FORM = tuple(named_metrics("length_ratio,never_stopped,repetition"))
_WORDS = tuple(named_metrics("rouge1_unstemmed,rougeL_unstemmed"))
_STOPPED = tuple(named_metrics("never_stopped"))
_GENERATED = 100  # test items of each of the five tasks
_OTHERS = 400  # test items of each other task
_NEW_TOKENS = 96

GENERATION = tuple(f"miniature_{shape}" for shape in SHAPES)
QUESTIONS, INSTRUCTIONS, JOINT_TASK = "miniature_questions", "miniature_instructions", "miniature_joint"


def _baselines(items: Sequence[Item]) -> dict[str, list[Output]]:
    """The source copied, the answer without its constraint, the empty answer, and the reference in the asked form."""
    return {
        "copy the input": [Output(item.source) for item in items],
        "the reference itself": [Output(item.target.reference) for item in items],
        "obedient reference": [Output(item.shown) for item in items],
        "empty answer": [Output("")] * len(items),
    }


_ALL = (
    *(
        Task(
            f"miniature_{shape}",
            Kind.GENERATION,
            f"miniature_{shape}",
            Form("{source}", joint=shapes.JOINT),
            (FACT_F1, INVENTED, *_WORDS, *_FORM),
            max_new_tokens=_NEW_TOKENS,
            shareable=True,
        )
        for shape in SHAPES
    ),
    Task(
        QUESTIONS,
        Kind.CHOICE,
        QUESTIONS,
        Form("Question: {question}\nAnswer:", by_words=True),
        tuple(named_metrics("accuracy")),
        max_new_tokens=16,
        floors=False,
        shareable=True,
    ),
    Task(
        INSTRUCTIONS,
        Kind.GENERATION,
        INSTRUCTIONS,
        Form("{prompt}"),
        (FOLLOWING["prompt_strict"], FOLLOWING["prompt_loose"], FOLLOWED_AND_RIGHT, *_STOPPED),
        max_new_tokens=_NEW_TOKENS,
        trivial_baselines=_baselines,
        shareable=True,
    ),
    Task(
        JOINT_TASK,
        Kind.GENERATION,
        JOINT_TASK,
        Form("{prompt}", joint=shapes.JOINT),
        (JOINT, FACT_F1, FOLLOWING["prompt_strict"], INVENTED, *_STOPPED),
        max_new_tokens=_NEW_TOKENS,
        trivial_baselines=_baselines,
        shareable=True,
    ),
)
MINIATURE_TASKS: dict[str, Task] = {task.name: task for task in _ALL}
_ITEMS: dict[str, Callable[[str], list[Item]]] = {
    **{f"miniature_{shape}": lambda split, shape=shape: clinical_items(shape, split, _GENERATED) for shape in SHAPES},
    QUESTIONS: lambda split: question_items(split, _OTHERS),
    INSTRUCTIONS: lambda split: instruction_items(split, _OTHERS),
    JOINT_TASK: lambda split: joint_items(split, _OTHERS),
}
TASK_SPLITS: dict[str, tuple[str, ...]] = {
    name: (*SPLITS, UNSEEN) if name in (INSTRUCTIONS, JOINT_TASK) else SPLITS for name in MINIATURE_TASKS
}


def items_of(name: str, split: str) -> list[Item]:
    """The items of a split of one of `MINIATURE_TASKS`."""
    return _ITEMS[name](split)
