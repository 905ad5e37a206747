"""Saves a trained LoRA adapter in the layout of PEFT and loads it, bit for bit."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from clinmerge_jax.checkpoint.adapters.adapter import CONFIG_FILE, PREFIX, WEIGHTS_FILE, open_adapter
from clinmerge_jax.checkpoint.adapters.adapter_files import Target, config_text, write_weights
from clinmerge_jax.checkpoint.folder import Checkpoint
from clinmerge_jax.checkpoint.output import OutputFolder
from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.lora import LoraSettings, build_adapter, targeted_rows
from clinmerge_jax.llama.parameters import Parameter


def save_lora(
    adapter: Mapping[str, Any],
    lora: LoraSettings,
    config: LlamaConfig,
    output: OutputFolder,
    *,
    location: str,
    base: Checkpoint,
) -> None:
    """Writes an adapter into an open OutputFolder (without committing it): weights first, adapter_config.json last.

    Args:
      adapter: from `training.lora.init_adapter`, trained; on the host or on devices of this process.
      lora: its settings.
      config: the model's config.
      output: the open folder.
      location: the location of the base, as the config names it.
      base: the model that the adapter is for.
    """
    targets, values = [], {}
    for row in targeted_rows(config, lora):
        node = _node(adapter, row)
        a_LRI, b_LOR = (np.asarray(node[leaf]) for leaf in ("lora_a", "lora_b"))
        for layer, name in enumerate(row.names(config)):
            module = PREFIX + name.removesuffix(".weight")
            pair = [np.ascontiguousarray(a_LRI[layer]), np.ascontiguousarray(b_LOR[layer])]
            stored = tuple((f"{module}.lora_{kind}.weight", x.dtype, x.shape) for kind, x in zip("AB", pair))
            targets.append(Target(name, row.shape(config), lora.rank, stored))
            values[name] = pair
    for left in (WEIGHTS_FILE, f"{WEIGHTS_FILE}.part"):  # of an interrupted run, whose factors may differ
        output.path(left).unlink(missing_ok=True)
    write_weights(targets, lambda target: (values[target.name], 0.0), output)
    text = config_text(
        location,
        base,
        base,
        targets,
        lora.rank,
        int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        dropout=lora.dropout,
        rank_stabilized=lora.rank_stabilized,
    )
    output.write_text(CONFIG_FILE, text)


def _node(adapter: Mapping[str, Any], row: Parameter) -> Mapping[str, Any]:
    for key in row.path[:-1]:
        adapter = adapter[key]
    return adapter


def load_lora(location: str, field: str, config: LlamaConfig) -> tuple[LoraSettings, dict[str, Any]]:
    """Reads an adapter, to add it or train it further: its settings and its factors as NumPy arrays in their own dtype.

    Args:
      location: any location that `folder.resolve` accepts.
      field: the config field that gave it, for messages.
      config: the config of the model that it is for.

    Raises:
      BadInput: as `open_adapter`; or the adapter does not treat all layers of a parameter alike, or a target is not a
        linear layer of this model.
    """
    adapter = open_adapter(location, field)
    modules = dict.fromkeys(name.removesuffix(".weight").rpartition(".")[2] for name in adapter.targets)
    lora = LoraSettings(
        rank=adapter.config["r"],
        alpha=adapter.config["lora_alpha"],
        dropout=adapter.config.get("lora_dropout") or 0.0,
        targets=tuple(modules),
        rank_stabilized=bool(adapter.config.get("use_rslora")),
    )
    rows = targeted_rows(config, lora)
    expected = {name for row in rows for name in row.names(config)}
    odd = sorted(expected.symmetric_difference(adapter.targets))
    if odd:
        raise BadInput(f"{field}: {adapter.path} changes {odd[0]} in some layers only; give an adapter of all layers")

    def leaves(row: Parameter) -> dict[str, np.ndarray]:
        outputs, inputs = row.shape(config)
        pairs = []
        for name in row.names(config):
            a_RI, b_OR, scaling = adapter.factors(name)
            if (a_RI.shape, b_OR.shape) != ((lora.rank, inputs), (outputs, lora.rank)) or scaling != lora.scaling:
                raise BadInput(
                    f"{field}: {adapter.path} has factors of {list(a_RI.shape)} and {list(b_OR.shape)} for {name},"
                    f" scaled by {scaling:g}, but r and lora_alpha require rank {lora.rank} and {lora.scaling:g}; give"
                    " an adapter of this model with one rank"
                )
            pairs.append((a_RI, b_OR))
        return {leaf: np.stack(factors) for leaf, factors in zip(("lora_a", "lora_b"), zip(*pairs))}

    return lora, build_adapter(config, lora, leaves)
