"""Write the output folder of a run, and define the identity of its result."""

import dataclasses
import json
import shutil
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from clinmerge_jax import provenance
from clinmerge_jax.checkpoint.adapters.lora import save_lora
from clinmerge_jax.checkpoint.card import shown_name, training_card
from clinmerge_jax.checkpoint.output import OutputFolder
from clinmerge_jax.checkpoint.parameters.params import load_params, save_params
from clinmerge_jax.errors import RunFailure
from clinmerge_jax.fine_tuning.learned import list_names
from clinmerge_jax.fine_tuning.settings import frozen_leaves
from clinmerge_jax.fine_tuning.source import Sets, Start
from clinmerge_jax.llama.parameters import Params
from clinmerge_jax.parallel import distributed
from clinmerge_jax.parallel.layout import Layout
from clinmerge_jax.tasks import learned
from clinmerge_jax.training.lora import merge_lora
from clinmerge_jax.training.step import StepSettings
from clinmerge_jax.training.weights import interpolate, join, split

LOG, STEPS = "log", "steps"  # folders
_SHOTS_FILE = "few_shot.json"
_NOT_IDENTITY = (
    "output", "overwrite", "resume", "mesh", "keep_last", "save_every", "model", "data_dir", "cache", "offline",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of one run.

    Attributes:
      config: the config of the job `sft`.
      start: the starting checkpoint.
      sets: the training sets.
      settings: the settings of the steps.
    """

    config: ConfigDict
    start: Start
    sets: Sets
    settings: StepSettings

    def identity(self) -> dict[str, Any]:
        """Everything that determines the result; used to recognise a finished or interrupted run."""
        return {
            "job": "sft",
            "inputs": {"model": provenance.fingerprint(self.start.checkpoint)},
            "rows": {name: one.digest() for name, one in self.sets.named().items()},
            "config": {name: value for name, value in self.config.to_dict().items() if name not in _NOT_IDENTITY},
            "steps": self.settings.steps,
            "computation": [str(self.settings.dtype), self.settings.attention.value],
            "credentialed": self.credentialed,
        }

    @property
    def credentialed(self) -> bool:
        """Whether the result is under a data use agreement."""
        return self.start.credentialed or self.sets.credentialed

    def folder(self) -> OutputFolder:
        """The output folder.

        Raises:
          BadInput: `config.output` cannot be used, or is the folder of the model.
        """
        output = OutputFolder(self.config.output, self.identity(), self.config.overwrite, provenance.same_result)
        output.refuse_overlap({"config.model": self.start.checkpoint.path})
        return output

    @property
    def is_adapter(self) -> bool:
        """Whether the result is an adapter in PEFT's layout; otherwise it is a checkpoint."""
        return self.settings.lora is not None and not self.config.merge_adapter

    def write_weights(self, trained: Params, layout: Layout, output: OutputFolder) -> None:
        """Writes the weights, config and tokenizer.

        Args:
          trained: the trained leaves, or the adapter.
          layout: the layout of the arrays on the mesh.
          output: the opened folder.

        Raises:
          RunFailure: the weights do not fit their dtype.
        """
        checkpoint, lora = self.start.checkpoint, self.settings.lora
        if self.is_adapter:
            whole = jax.tree.map(lambda leaf: multihost_utils.process_allgather(leaf, tiled=True), trained)
            if distributed.is_first():
                save_lora(whole, lora, layout.config, output, location=self.config.model, base=checkpoint)
                for path in checkpoint.carried_files():
                    output.copy(path)
            return

        def stored() -> Params:
            return load_params(checkpoint, mesh=layout.mesh)[1]

        if lora is not None:
            params = merge_lora(stored(), trained, lora)
        elif self.config.freeze:  # reload frozen leaves, because training may have rounded them
            params = join(trained, split(stored(), layout.config, frozen_leaves(self.config, layout.config))[1])
        else:
            params = trained
        if self.config.wise_ft != 1:
            params = interpolate(stored(), params, self.config.wise_ft)
        params = jax.tree.map(lambda leaf: leaf.astype(self.start.dtype), params)
        if not _finite(params):
            raise RunFailure(f"the trained weights do not fit {self.start.dtype}; lower config.learning_rate")
        save_params(
            params,
            layout.config,
            checkpoint.config,
            output,
            carried=checkpoint.carried_files(),
            layout=layout,
            naming=checkpoint.naming,
        )

    def commit(self, output: OutputFolder, steps: int, result_of_step: int, stopped_early: bool = False) -> None:
        """Writes model card, chosen examples and provenance, then moves the folder into place.

        Args:
          output: the folder with the weights and the log.
          steps: the number of steps taken.
          result_of_step: the step whose weights are the result.
          stopped_early: whether training stopped because patience ran out.
        """
        config, credentialed = self.config, self.credentialed
        training = {
            **{name: value for name, value in config.to_dict().items() if name not in ("output", "overwrite")},
            "steps": steps,
            "result_of_step": result_of_step,
            "stopped_early": stopped_early,
            "examples": {name: str(one) for name, one in self.sets.named().items()},
        }
        record = {
            **provenance.environment(),
            "sha256": {"model": self.start.digests},
            "credentialed": credentialed,
            "training": training,
            **learned.record(self.sets.learned),
        }
        ids = [document.id for document in self.sets.examples.documents]
        output.write_text(_SHOTS_FILE, json.dumps(ids, indent=0) + "\n")
        name = shown_name(config.model)
        described = {**training, "model": name}
        for field in ("task", "validation"):
            described[field] = _shown(config[field])
        described["replay"] = {**described["replay"], "task": _shown(config.replay.task)}
        described["own"] = {**described["own"], **{split: shown_name(config.own[split]) for split in ("train", "test")}}
        for place in ("data_dir", "cache"):  # paths of this machine
            del described[place]
        card = training_card(output.target.name, name, self.start.checkpoint.path, described, credentialed)
        output.write_text("README.md", card)
        shutil.rmtree(output.path(STEPS), ignore_errors=True)
        output.commit(record)


def _shown(sets: str) -> str:
    """The sets that a field lists, without paths of this machine."""
    listed = list_names(sets, "config.task") if sets else []
    return ",".join(f"{shown_name(name)}={share:g}" if share else shown_name(name) for name, share in listed)


@jax.jit
def _finite(params: Params) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]).all()
