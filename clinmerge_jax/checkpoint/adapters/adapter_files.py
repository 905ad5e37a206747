"""Writes a LoRA adapter in the layout of PEFT: the list of its tensors, adapter_config.json, and the weight file.

The module `adapter` reads these files and defines what is added to which tensor.
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Sequence

import numpy as np

from clinmerge_jax.checkpoint import remote
from clinmerge_jax.checkpoint.adapters.adapter import EMBEDDINGS, PREFIX, WEIGHTS_FILE, last_part
from clinmerge_jax.checkpoint.folder import Checkpoint
from clinmerge_jax.checkpoint.formats.safetensors import header_bytes
from clinmerge_jax.checkpoint.output import OutputFolder, sync

_IN_LAYER = re.compile(r"^(?:.*\.)?layers\.\d+\.")
_WRITTEN = "written"  # key of the journal: the figure of each tensor that is written already


@dataclasses.dataclass(frozen=True)
class Target:
    """A tensor of the model that the adapter changes.

    Attributes:
      name: its name in the checkpoints.
      shape: its shape in the checkpoints.
      rank: the rank of its factors; 0 if the tensor is stored whole.
      stored: name, dtype and shape of each tensor that the adapter stores for it, in the order of the file.
    """

    name: str
    shape: tuple[int, ...]
    rank: int
    stored: tuple[tuple[str, np.dtype, tuple[int, ...]], ...]

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in the weight file."""
        return sum(math.prod(shape) * dtype.itemsize for _, dtype, shape in self.stored)


def plan_targets(model: Checkpoint, names: Sequence[str], rank: int, dtype: np.dtype) -> list[Target]:
    """Plans the tensors of an adapter that is extracted from two models.

    Args:
      model: the Checkpoint that base and adapter together approximate.
      names: the names of its matrices; embed_tokens and lm_head are stored whole, in their own dtype.
      rank: the rank of the factors; 0, or more than a matrix has, means full rank.
      dtype: the dtype of the factors.
    """
    targets = []
    for name in names:
        entry, module = model.tensors[name], PREFIX + name.removesuffix(".weight")
        if last_part(name) in EMBEDDINGS:
            targets.append(Target(name, entry.shape, 0, ((f"{module}.weight", entry.dtype, entry.shape),)))
            continue
        most = min(entry.shape)
        its_rank = min(rank, most) if rank else most
        rows, columns = entry.shape
        stored = (
            (f"{module}.lora_A.weight", dtype, (its_rank, columns)),
            (f"{module}.lora_B.weight", dtype, (rows, its_rank)),
        )
        targets.append(Target(name, entry.shape, its_rank, stored))
    return targets


def write_weights(
    targets: Sequence[Target],
    values: Callable[[Target], tuple[Sequence[np.ndarray], float]],
    output: OutputFolder,
    progress: Callable[[int], None] = lambda entries: None,
) -> dict[str, float]:
    """Writes the weight file, tensor by tensor; what an interrupted run has written is kept.

    Args:
      targets: the tensors of the adapter, in the order of the file.
      values: function of a target to its stored arrays and a figure, which the journal keeps for a resumed run.
      output: an open folder.
      progress: called with the number of tensor values done since the last call.

    Returns:
      The figure of every tensor, by name.
    """
    header = header_bytes(stored for target in targets for stored in target.stored)
    temporary, finished = output.path(WEIGHTS_FILE + ".part"), output.path(WEIGHTS_FILE)
    journal = output.read_journal()
    written = journal.setdefault(_WRITTEN, {})
    if not temporary.exists() and not finished.exists():
        written.clear()
    path = finished if finished.exists() else temporary
    with open(os.open(path, os.O_CREAT | os.O_RDWR, 0o644), "r+b") as file:
        file.write(header)
        position = len(header)
        for target in targets:
            if target.name not in written:
                file.seek(position)
                stored, figure = values(target)
                for array in stored:
                    file.write(memoryview(array.reshape(-1).view(np.uint8)))
                file.flush()
                os.fsync(file.fileno())  # the journal must not name what a power failure could undo
                written[target.name] = figure
                output.write_journal(journal)
            position += target.nbytes
            progress(math.prod(target.shape))
        file.truncate(position)
    path.rename(finished)
    sync(output.partial)
    return {target.name: written[target.name] for target in targets}


def config_text(
    location: str,
    base: Checkpoint,
    model: Checkpoint,
    targets: Sequence[Target],
    rank: int,
    alpha: float,
    *,
    dropout: float = 0.0,
    rank_stabilized: bool = False,
) -> str:
    """The text of adapter_config.json.

    PEFT expects factors for every module that target_modules matches. So a short name such as q_proj is listed only if
    all modules that end in it are in the adapter. Otherwise, as when the difference is zero in some layers, full names
    are listed.

    Args:
      location: the location of the base, as the config names it.
      base: the model that the adapter is for.
      model: the model that base and adapter together approximate.
      targets: the tensors of the adapter.
      rank: the highest rank among them.
      alpha: every module is scaled by alpha / rank, those of a lower rank too.
      dropout: the dropout of its training.
      rank_stabilized: whether the scale is alpha / sqrt(rank) instead; all modules then have that rank.
    """
    factored = {target.name.removesuffix(".weight"): target.rank for target in targets if target.rank}
    modules = [name.removesuffix(".weight") for name in model.tensors if name.endswith(".weight")]
    names: list[str] = []
    for last in dict.fromkeys(last_part(module) for module in factored):
        alike = [module for module in modules if last_part(module) == last]
        names += [last] if all(module in factored for module in alike) else [m for m in alike if m in factored]
    ranks: dict[str, int] = {}
    for module, its_rank in factored.items():
        if its_rank < rank:
            short = _IN_LAYER.sub("", module)
            alike = {r for other, r in factored.items() if f".{other}".endswith(f".{short}")}
            ranks[short if alike == {its_rank} else module] = its_rank
    revision = None
    if not os.path.isdir(os.path.expanduser(location)) and remote.is_hub_id(location):
        location, _, revision = location.partition("@")
    else:
        location = str(base.path.resolve())
    content = {
        "base_model_name_or_path": location,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "modules_to_save": [last_part(target.name) for target in targets if not target.rank] or None,
        "peft_type": "LORA",
        "r": rank,
        "alpha_pattern": {name: alpha * its_rank / rank for name, its_rank in ranks.items()},
        "rank_pattern": ranks,
        "revision": revision or None,
        "target_modules": names,
        "task_type": "CAUSAL_LM",
        "use_rslora": rank_stabilized,
    }
    return json.dumps(content, indent=1) + "\n"
