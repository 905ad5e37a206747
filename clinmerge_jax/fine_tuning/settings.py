"""Convert the config of a fine-tuning run to the settings of its steps and loop."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from clinmerge_jax.data.loader import steps_of
from clinmerge_jax.errors import BadInput
from clinmerge_jax.fine_tuning.source import Packing, choice, packing_of
from clinmerge_jax.llama.attention import Use, resolve
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.lora import LoraSettings, targeted_rows
from clinmerge_jax.llama.model import Remat
from clinmerge_jax.training.loop import LoopSettings
from clinmerge_jax.training.optimizer import OptimizerSettings, Schedule
from clinmerge_jax.training.step import StepSettings
from clinmerge_jax.training.weights import frozen_paths


def step_settings(
    config: ConfigDict, llama: LlamaConfig, sequences: int, replayed: float, device: jax.Device
) -> StepSettings:
    """Makes the settings of the steps from the config.

    Args:
      config: the job's config.
      llama: the model's architecture.
      sequences: the number of sequences to learn.
      replayed: the share of replayed sequences in each step.
      device: one of the devices that compute; on CPUs the default dtype is float32, elsewhere bfloat16.

    Raises:
      BadInput: a field is wrong.
    """
    for field in ("epochs", "steps"):
        if not 0 <= config[field] < math.inf:
            raise BadInput(f"config.{field}: is {config[field]}; give a number over 0")
    if not config.steps and not config.epochs:
        raise BadInput("config.epochs: is 0, and so is config.steps; give one of the two")
    steps = steps_of(sequences, config.batch_size, config.epochs, config.steps, replayed)
    if config.warmup_steps >= steps > 1:
        raise BadInput(
            f"config.warmup_steps: {config.warmup_steps} of {steps} steps leave none at the full learning rate; give"
            " fewer, or 0 to use config.warmup_share"
        )
    if not 0 <= config.seed < 2**32:
        raise BadInput(f"config.seed: is {config.seed}; give a whole number from 0 to 4294967295")
    optimizer = OptimizerSettings(
        learning_rate=config.learning_rate,
        final_share=config.final_share,
        schedule=choice(Schedule, config.schedule, "schedule"),
        warmup_steps=config.warmup_steps,
        warmup_share=config.warmup_share,
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
            targets=tuple(name.strip() for name in config.lora.targets.split(",") if name.strip()),
            rank_stabilized=config.lora.rank_stabilized,
        )
        targeted_rows(llama, lora)
        if config.freeze:
            raise BadInput("config.freeze: with an adapter the weights are frozen anyway; leave it out")
    elif config.merge_adapter:
        raise BadInput("config.merge_adapter: there is no adapter if config.lora.rank is 0; leave it out")
    if not 0 < config.wise_ft <= 1:
        raise BadInput(f"config.wise_ft: is {config.wise_ft}; give a share over 0, up to 1")
    if lora is not None and config.wise_ft != 1 and not config.merge_adapter:
        raise BadInput("config.wise_ft: requires config.merge_adapter=True for an adapter; set that, or leave it at 1")
    computed = config.dtype
    if computed == "auto":
        computed = "float32" if device.platform == "cpu" else "bfloat16"
    dtype = _dtype(computed, "dtype")
    packed = packing_of(config) in (Packing.STEP, Packing.SET)
    return StepSettings(
        optimizer=optimizer,
        steps=steps,
        lora=lora,
        dtype=dtype,
        attention=resolve(config.attention, Use.SEQUENCES, llama, dtype, device, packed=packed),
        remat=choice(Remat, config.remat, "remat"),
        kl=config.kl,
        l2=config.l2,
    )


def loop_settings(config: ConfigDict, steps: int, validated: bool) -> LoopSettings:
    """Makes the settings of the loop: when it validates, saves its state and ends.

    Args:
      config: the job's config.
      steps: the number of steps to take.
      validated: whether there are validation examples.

    Raises:
      BadInput: a field is wrong.
    """
    for field in ("save_every", "validate_every", "patience"):
        if config[field] < 0:
            raise BadInput(f"config.{field}: is {config[field]}; give 0 or more")
    if config.keep_last < 1:
        raise BadInput(f"config.keep_last: is {config.keep_last}; give 1 or more")
    if config.select not in ("last", "best"):
        raise BadInput(f"config.select: {config.select!r} is unknown; give last or best")
    if not validated and (config.select == "best" or config.patience or config.validate_every):
        raise BadInput("config.validation: is empty, but select=best, patience and validate_every need it; name a file")
    if (config.select == "best" or config.patience) and not 0 < config.validate_every < steps:
        raise BadInput(
            f"config.validate_every: is {config.validate_every}, but select=best and patience compare several"
            f" validations in the {steps} steps; give a number over 0 and under {steps}"
        )
    return LoopSettings(steps, config.save_every, config.validate_every, config.patience)


def frozen_leaves(config: ConfigDict, llama: LlamaConfig) -> frozenset[tuple[str, ...]]:
    """The leaves of Params that full fine-tuning leaves frozen, by `config.freeze`.

    Raises:
      BadInput: as `training.weights.frozen_paths`.
    """
    return frozen_paths(llama, (config.freeze,)) if config.freeze else frozenset()


def _dtype(name: str, field: str) -> Any:
    if name not in ("float32", "bfloat16"):
        raise BadInput(f"config.{field}: {name!r} is unknown; give float32 or bfloat16")
    return jnp.dtype(name)
