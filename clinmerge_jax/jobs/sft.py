"""Fine-tunes a checkpoint on few examples, or continues its pretraining.

Reads the config, chooses the examples, checks everything, trains with checkpoints on the way, and moves the finished
folder into place: a checkpoint, or a LoRA adapter in PEFT's layout. A killed run continues after the last saved step.
"""

import shutil

import jax.numpy as jnp
import tqdm
from absl import logging
from ml_collections import ConfigDict

from clinmerge_jax.checkpoint.output import OutputFolder, OutputState
from clinmerge_jax.checkpoint.parameters.params import load_params
from clinmerge_jax.fine_tuning.learned import list_names
from clinmerge_jax.fine_tuning.result import LOG, STEPS, Result
from clinmerge_jax.fine_tuning.settings import frozen_leaves, loop_settings, step_settings
from clinmerge_jax.fine_tuning.source import Sets, Source, open_start
from clinmerge_jax.parallel import distributed
from clinmerge_jax.parallel.layout import make_layout
from clinmerge_jax.parallel.mesh import MeshShape
from clinmerge_jax.tasks.table import GROUPS, TASKS
from clinmerge_jax.training.checkpoints import Checkpoints, abstract
from clinmerge_jax.training.log import TrainingLog
from clinmerge_jax.training.loop import LoopSettings, Outcome, train
from clinmerge_jax.training.run import Run
from clinmerge_jax.training.step import TrainState


def run(config: ConfigDict) -> None:
    """Runs the training that the config describes; see configs/sft.py for its fields.

    Raises:
      BadInput: a field or a file is wrong.
      RunFailure: a loss is not finite, or the process received SIGTERM.
    """
    distributed.refuse_difference("the config", config.to_dict())
    start = open_start(config)
    sets = Source(config, start).sets(config.shots, config.seed)
    layout = make_layout(start.llama, MeshShape(**config.mesh))
    rows = sets.rows(config, start.llama)
    settings = step_settings(config, start.llama, len(sets.examples.sequences), rows.replay_share, layout.device)
    frozen = frozen_leaves(config, start.llama)
    loop = loop_settings(config, settings.steps, sets.validation is not None)
    training = Run(layout, settings, sets.examples.sequences, rows, config.seed)
    result = Result(config, start, sets, settings)
    distributed.refuse_difference("the examples", result.identity()["rows"])
    with result.folder() as output:
        distributed.at_bad_input(output.discard)
        state = OutputState(distributed.on_first(lambda: output.open().value))
        if state is OutputState.FINISHED:
            if distributed.is_first():
                print(output.finished_text("same start, examples and settings", "Its description is in"))
            return
        if state is OutputState.RESUMED and not config.resume and distributed.is_first():
            for name in (STEPS, LOG):
                shutil.rmtree(output.path(name), ignore_errors=True)
        distributed.barrier("the folder")
        for name, one in sets.named().items():
            logging.info("%s: %s", name, one)
        logging.info("%d steps of %d sequences into %s", settings.steps, config.batch_size, output.target)
        logging.info("%s", training.planned)
        dtype = settings.dtype if settings.lora else jnp.float32
        _, params = load_params(start.checkpoint, dtype, mesh=layout.mesh)
        begun = training.begin(params, frozen, config.seed)
        del params
        checkpoints = Checkpoints(output.path(STEPS), config.keep_last, config.select == "best")
        log: list[TrainingLog] = []
        try:
            outcome = _train(training, begun, loop, checkpoints, output, log, sets)
            trained = outcome.state
            if config.select == "best" and outcome.best_step != outcome.step:
                trained, _ = checkpoints.restore(outcome.best_step, abstract(trained))
        finally:
            checkpoints.close()
        result.write_weights(trained.trained, layout, output)
        if not distributed.is_first():
            return
        result.commit(output, outcome.step, int(trained.step), outcome.stopped_early)
    _report(config, output, log[0], outcome, int(trained.step), result.is_adapter)


def _train(
    training: Run,
    state: TrainState,
    loop: LoopSettings,
    checkpoints: Checkpoints,
    output: OutputFolder,
    log: list[TrainingLog],
    sets: Sets,
) -> Outcome:
    with tqdm.tqdm(
        total=loop.steps, desc="train", unit="step", mininterval=0.5, disable=not distributed.is_first()
    ) as bar:

        def progress(step: int, loss: float) -> None:
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            bar.update(step - bar.n)

        def open_log(after: int) -> TrainingLog | None:
            if not distributed.is_first():
                return None
            log.append(TrainingLog(output.path(LOG), after))
            return log[0]

        return train(
            state,
            training.take,
            training.loader(),
            loop,
            checkpoints,
            open_log,
            validate=training.loss(sets.validation.sequences) if sets.validation else None,
            measures=training.measures,
            name_rows=sets.name_rows(),
            progress=progress,
        )


def _report(
    config: ConfigDict, output: OutputFolder, log: TrainingLog, outcome: Outcome, step: int, adapter: bool
) -> None:
    losses, held_out = log.column("loss"), log.column("validation_loss")
    print(f"Training loss: {losses[0][1]:.3f} at the first step, {losses[-1][1]:.3f} at step {losses[-1][0]}.")
    if held_out:
        start, *later = held_out
        least = min(later, key=lambda pair: pair[1])
        print(
            f"Validation loss: {start[1]:.3f} at the start, {later[-1][1]:.3f} at step {later[-1][0]}; the lowest is"
            f" {least[1]:.3f} at step {least[0]}."
        )
    if outcome.stopped_early:
        print(f"Stopped early: {config.patience} validations without a lower loss.")
    what = "adapter" if adapter else "checkpoint"
    print(f"The {what} of step {step} is {output.target}; its log is in {output.target / LOG}.")
    trained = f"{config.model}+{output.target}" if adapter else output.target
    print(
        "Next: compare it with its start on what it has learned, --config=configs/evaluate.py"
        f" --config.model=start={config.model},trained={trained} --config.chat_template={config.chat_template}"
        f" --config.tasks={_evaluated(config)}"
    )
    if adapter:
        print(
            f"Or name {trained} as a model of a recipe (--config.recipe=FILE), or get the whole model with"
            " --config.merge_adapter=True and another --config.output."
        )
    else:
        print(f"Or merge it: --config=configs/merge.py --config.clinical={trained} --config.instruct=DIR")


def _evaluated(config: ConfigDict) -> str:
    """What config.tasks of the evaluate job takes, for the tasks of a config that are not files."""
    names = [name for name, _ in list_names(config.task, "config.task")]
    own = config.own.name if config.own.test or config.own.train else ""
    known = [name.partition("@")[0] for name in names if name in GROUPS or name.partition("@")[0] in {*TASKS, own}]
    tasks = ",".join(dict.fromkeys(known)) or "TASK"
    return tasks + " and the same --config.own flags" * (own in known)
