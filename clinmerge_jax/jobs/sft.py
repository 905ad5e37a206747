"""Fine-tunes a checkpoint on few examples, or continues its pretraining.

Read the config, choose and pack the examples, check everything, train with checkpoints on the way, and put the finished
folder in place: a checkpoint, or a LoRA adapter in the layout of PEFT. A killed run goes on after the last step that
was kept.
"""

import json
import math
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from absl import logging
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from clinmerge_jax import provenance
from clinmerge_jax.checkpoint.card import shown_name, training_card
from clinmerge_jax.checkpoint.folder import Checkpoint, open_checkpoint
from clinmerge_jax.checkpoint.lora import save_lora
from clinmerge_jax.checkpoint.output import OutputFolder, OutputState
from clinmerge_jax.checkpoint.params import llama_config, load_params, save_params
from clinmerge_jax.checkpoint.tokenizer import load_tokenizer
from clinmerge_jax.data.examples import Examples, prepare, read
from clinmerge_jax.data.few_shot import choose
from clinmerge_jax.data.loader import steps_of
from clinmerge_jax.errors import BadInput, RunFailure
from clinmerge_jax.llama.attention import Use, resolve
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.lora import LoraSettings, targeted_rows
from clinmerge_jax.llama.model import Remat
from clinmerge_jax.llama.parameters import Params
from clinmerge_jax.parallel import distributed
from clinmerge_jax.parallel.layout import Layout, make_layout
from clinmerge_jax.parallel.mesh import MeshShape
from clinmerge_jax.training.checkpoints import Checkpoints, abstract
from clinmerge_jax.training.log import TrainingLog
from clinmerge_jax.training.loop import LoopSettings, Outcome, train
from clinmerge_jax.training.lora import merge_lora
from clinmerge_jax.training.optimizer import OptimizerSettings, Schedule
from clinmerge_jax.training.run import Rows, Run, name_rows
from clinmerge_jax.training.step import StepSettings, TrainState
from clinmerge_jax.training.weights import frozen_paths, interpolate, join

SHOTS_FILE = "few_shot.json"
_LOG, _STEPS = "log", "steps"
_NOT_IDENTITY = ("output", "overwrite", "resume", "mesh", "keep_last", "save_every", "model", "data_dir")


def run(config: ConfigDict) -> None:
    """Trains what the config describes; see configs/sft.py for its fields.

    Raises:
      BadInput: a field or a file is wrong.
      RunFailure: a loss is not finite, or the process was told to end.
    """
    distributed.refuse_difference("the config", config.to_dict())
    checkpoint = open_checkpoint(config.model, "config.model")
    llama = llama_config(checkpoint)
    dtype = _stored_dtype(checkpoint)
    examples, validation, replay = _examples(config, checkpoint, llama)
    layout = make_layout(llama, MeshShape(**config.mesh))
    rows = Rows(
        config.batch_size, config.micro_batch, replay.rows if replay else None, config.replay.share if replay else 0.0
    )
    settings = step_settings(config, len(examples.rows.tokens), rows.replay_share, layout)
    if settings.lora is not None:
        targeted_rows(llama, settings.lora)
    frozen = frozen_paths(llama, _texts(config.freeze)) if config.freeze else frozenset()
    loop = _loop_settings(config, settings.steps, validation is not None)
    training = Run(layout, settings, examples.rows, rows, config.seed)
    credentialed = provenance.is_credentialed(config.credentialed, [checkpoint])
    sets = {"examples": examples, "validation": validation, "replay": replay}
    identity = {
        "job": "sft",
        "inputs": {"model": provenance.fingerprint(checkpoint)},
        "rows": {name: one.digest() for name, one in sets.items() if one is not None},
        "config": {name: value for name, value in config.to_dict().items() if name not in _NOT_IDENTITY},
        "steps": settings.steps,
        "credentialed": credentialed,
    }
    distributed.refuse_difference("the examples", identity["rows"])
    with OutputFolder(config.output, identity, config.overwrite, provenance.same_result) as output:
        distributed.at_bad_input(output.discard)
        output.refuse_overlap({"config.model": checkpoint.path})
        state = OutputState(distributed.on_first(lambda: output.open().value))
        if state is OutputState.FINISHED:
            if distributed.is_first():
                print(output.finished_text("same start, examples and settings", "What it is says"))
            return
        if state is OutputState.RESUMED and not config.resume and distributed.is_first():
            for name in (_STEPS, _LOG):
                shutil.rmtree(output.path(name), ignore_errors=True)
        distributed.barrier("the folder")
        logging.info("%s", examples.packed)
        logging.info("%d steps of %d rows into %s", settings.steps, config.batch_size, output.target)
        _, params = load_params(checkpoint, settings.dtype if settings.lora else jnp.float32, mesh=layout.mesh)
        begun = training.begin(params, frozen, config.seed)
        del params
        checkpoints = Checkpoints(output.path(_STEPS), config.keep_last, config.select == "best")
        log: list[TrainingLog] = []
        try:
            outcome = _train(training, begun, loop, checkpoints, output, log, examples, replay, validation)
            trained = outcome.state
            if config.select == "best" and outcome.best_step != outcome.step:
                trained, _ = checkpoints.restore(outcome.best_step, abstract(trained))
        finally:
            checkpoints.close()
        _write(config, checkpoint, layout, training, trained, dtype, output)
        if not distributed.is_first():
            return
        record = {
            **provenance.environment(),
            "sha256": {"model": provenance.digests(checkpoint, {})},
            "credentialed": credentialed,
            "training": {
                "steps": outcome.step,
                "result_of_step": int(trained.step),
                "stopped_early": outcome.stopped_early,
                "examples": {name: str(one.packed) for name, one in sets.items() if one is not None},
                **{name: value for name, value in config.to_dict().items() if name not in ("output", "overwrite")},
            },
        }
        output.write_text(SHOTS_FILE, json.dumps([document.id for document in examples.documents], indent=0) + "\n")
        name = shown_name(config.model)
        described = {**record["training"], "model": name, "task": shown_name(config.task)}
        output.write_text(
            "README.md", training_card(output.target.name, name, checkpoint.path, described, credentialed)
        )
        shutil.rmtree(output.path(_STEPS))
        output.commit(record)
    _report(config, output, log[0], outcome, int(trained.step), settings.lora is not None)


def step_settings(config: ConfigDict, rows: int, replayed: float, layout: Layout) -> StepSettings:
    """The settings of the steps, from the config.

    Args:
      config: of the job.
      rows: how many rows there are to learn.
      replayed: the share of each step that is not of them.
      layout: of the model; on CPUs the computation is in float32 by default.

    Raises:
      BadInput: a field is wrong.
    """
    for field in ("epochs", "steps"):
        if not 0 <= config[field] < math.inf:
            raise BadInput(f"config.{field}: is {config[field]}; give a number over 0")
    if not config.steps and not config.epochs:
        raise BadInput("config.epochs: is 0, and so is config.steps; give one of the two")
    steps = steps_of(rows, config.batch_size, config.epochs, config.steps, replayed)
    if config.warmup_steps >= steps > 1:
        logging.warning("config.warmup_steps: %d of %d steps; the learning rate hardly gets to its height",
                        config.warmup_steps, steps)  # fmt: skip
    optimizer = OptimizerSettings(
        learning_rate=config.learning_rate,
        final_share=config.final_share,
        schedule=_choice(Schedule, config.schedule, "schedule"),
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        beta1=config.beta1,
        beta2=config.beta2,
        eps=config.eps,
        clip_norm=config.clip_norm,
        first_moment_dtype=_dtype(config.first_moment, "first_moment") if config.first_moment else None,
    )
    lora = None
    if config.lora.rank:
        lora = LoraSettings(
            rank=config.lora.rank,
            alpha=config.lora.alpha,
            dropout=config.lora.dropout,
            targets=_texts(config.lora.targets),
            rank_stabilized=config.lora.rank_stabilized,
        )
        if config.freeze:
            raise BadInput("config.freeze: with an adapter the weights are frozen anyway; leave it out")
    elif config.merge_adapter:
        raise BadInput("config.merge_adapter: there is no adapter where config.lora.rank is 0; leave it out")
    if not 0 < config.wise_ft <= 1:
        raise BadInput(f"config.wise_ft: is {config.wise_ft}; give a share over 0, up to 1")
    if lora is not None and config.wise_ft != 1 and not config.merge_adapter:
        raise BadInput("config.wise_ft: of an adapter it needs config.merge_adapter=True; add that, or leave it at 1")
    computed = config.dtype
    if computed == "auto":
        computed = "float32" if layout.device.platform == "cpu" else "bfloat16"
    dtype = _dtype(computed, "dtype")
    return StepSettings(
        optimizer=optimizer,
        steps=steps,
        lora=lora,
        dtype=dtype,
        remat=_choice(Remat, config.remat, "remat"),
        attention=resolve(config.attention, Use.SEQUENCES, layout.config, dtype, layout.device, packed=config.packing),
        kl=config.kl,
        l2=config.l2,
    )


def _loop_settings(config: ConfigDict, steps: int, validated: bool) -> LoopSettings:
    for field in ("save_every", "validate_every", "patience"):
        if config[field] < 0:
            raise BadInput(f"config.{field}: is {config[field]}; give 0 or more")
    if config.keep_last < 1:
        raise BadInput(f"config.keep_last: is {config.keep_last}; give 1 or more")
    if config.select not in ("last", "best"):
        raise BadInput(f"config.select: {config.select!r} is unknown; give last or best")
    if not validated and (config.select == "best" or config.patience or config.validate_every):
        raise BadInput(
            "config.validation: is empty, and select=best, patience and validate_every go by it; name a file"
        )
    return LoopSettings(steps, config.save_every, config.validate_every, config.patience)


def _examples(
    config: ConfigDict, checkpoint: Checkpoint, llama: LlamaConfig
) -> tuple[Examples, Examples | None, Examples | None]:
    """What is learned, what the validation loss is of, and what is replayed."""
    if not 1 < config.length <= llama.max_position_embeddings:
        raise BadInput(
            f"config.length: is {config.length}; give 2 or more, up to the model's context of"
            f" {llama.max_position_embeddings}"
        )
    tokenizer = load_tokenizer(checkpoint.path, "config.model")

    def prepared(task: str, field: str, shots: int = 0) -> Examples | None:
        if not task:
            return None
        documents = read(task, field, config.label, config.data_dir)
        return prepare(
            choose(documents, shots, config.seed) if field == "config.task" else documents,
            tokenizer,
            llama.vocab_size,
            config.length,
            chat=config.chat_template,
            packing=config.packing,
            field="config.model",
        )

    examples = prepared(config.task, "config.task", config.shots)
    if examples is None:
        raise BadInput("config.task: is empty; name a file of examples")
    validation = prepared(config.validation, "config.validation")
    if validation is not None:
        shared = {document.id for document in examples.documents} & {one.id for one in validation.documents}
        if shared:
            raise BadInput(
                f"config.validation: {len(shared)} of its documents are among the examples too, {min(shared)} the"
                " first; take them out"
            )
    return examples, validation, prepared(config.replay.task, "config.replay.task")


def _train(
    training: Run,
    state: TrainState,
    loop: LoopSettings,
    checkpoints: Checkpoints,
    output: OutputFolder,
    log: list[TrainingLog],
    examples: Examples,
    replay: Examples | None,
    validation: Examples | None,
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
            log.append(TrainingLog(output.path(_LOG), after))
            return log[0]

        known = [one for one in (examples, replay) if one is not None]
        return train(
            state,
            training.take,
            training.loader(),
            loop,
            checkpoints,
            open_log,
            validate=training.loss(validation.rows) if validation else None,
            measures=training.measures,
            name_rows=name_rows([one.rows for one in known], [ids for one in known for ids in one.ids_by_row()]),
            progress=progress,
        )


def _write(
    config: ConfigDict,
    checkpoint: Checkpoint,
    layout: Layout,
    training: Run,
    state: TrainState,
    dtype: np.dtype,
    output: OutputFolder,
) -> None:
    """The weights of the result, with config and tokenizer."""
    lora = training.settings.lora
    if lora is not None and not config.merge_adapter:
        _write_adapter(config, checkpoint, lora, state.trained, output)
        return

    def stored() -> Params:
        return load_params(checkpoint, mesh=layout.mesh)[1]

    if lora is not None:
        params = merge_lora(stored(), state.trained, lora)
    elif training.frozen:  # they come from the folder again, as training may have rounded them
        params = join(state.trained, _without(stored(), state.trained))
    else:
        params = state.trained
    if config.wise_ft != 1:
        params = interpolate(stored(), params, config.wise_ft)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    finite = jax.jit(lambda params: jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]).all())
    if not finite(params):
        raise RunFailure(f"the trained weights do not fit {dtype}; lower config.learning_rate")
    save_params(params, layout.config, checkpoint.config, output, carried=checkpoint.carried_files(), layout=layout)


def _without(params: Params, other: Params) -> Params:
    """The leaves of one tree that another, of some of its leaves, has not."""
    left = {}
    for key, node in params.items():
        if key not in other:
            left[key] = node
        elif isinstance(node, dict) and (rest := _without(node, other[key])):
            left[key] = rest
    return left


def _write_adapter(
    config: ConfigDict, checkpoint: Checkpoint, lora: LoraSettings, adapter: Params, output: OutputFolder
) -> None:
    whole = jax.tree.map(lambda leaf: multihost_utils.process_allgather(leaf, tiled=True), adapter)
    if not distributed.is_first():
        return
    save_lora(whole, lora, llama_config(checkpoint), output, location=config.model, base=checkpoint)
    for path in checkpoint.carried_files():
        output.copy(path)


def _report(
    config: ConfigDict, output: OutputFolder, log: TrainingLog, outcome: Outcome, step: int, adapter: bool
) -> None:
    losses, held_out = log.column("loss"), log.column("validation_loss")
    print(f"Training loss: {losses[0][1]:.3f} at the first step, {losses[-1][1]:.3f} at step {losses[-1][0]}.")
    if held_out:
        best = min(held_out, key=lambda pair: pair[1])
        print(f"Validation loss: {best[1]:.3f} at step {best[0]}, {held_out[-1][1]:.3f} at step {held_out[-1][0]}.")
    if outcome.stopped_early:
        print(f"Stopped early: {config.patience} validations without a new least loss.")
    what = "adapter" if adapter and not config.merge_adapter else "checkpoint"
    print(f"The {what} of step {step} is {output.target}; its log is in {output.target / _LOG}.")
    if what == "adapter":
        print(
            f"Next: name {config.model}+{output.target} as a model of a recipe (--config.recipe=FILE), or get the"
            " whole model with --config.merge_adapter=True, into another --config.output."
        )
    else:
        print(
            f"Next: merge it with --config=configs/merge.py --config.clinical={output.target} --config.instruct=DIR,"
            f" or ask it with --config=configs/generate.py --config.model={output.target}"
        )


def _stored_dtype(checkpoint: Checkpoint) -> np.dtype:
    dtypes = {entry.dtype for entry in checkpoint.tensors.values()}
    if len(dtypes) > 1:
        raise BadInput(f"config.model: {checkpoint.path} mixes {', '.join(map(str, dtypes))}; save it in one dtype")
    return dtypes.pop()


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else tuple(value)


def _choice(kind: Any, value: str, field: str) -> Any:
    try:
        return kind(value)
    except ValueError as error:
        names = ", ".join(one.value for one in kind)
        raise BadInput(f"config.{field}: {value!r} is unknown; give one of {names}") from error


def _dtype(name: str, field: str) -> Any:
    if name not in ("float32", "bfloat16"):
        raise BadInput(f"config.{field}: {name!r} is unknown; give float32 or bfloat16")
    return jnp.dtype(name)
