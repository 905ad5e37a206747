"""Merges an instruct and a clinical checkpoint, and measures what the merge keeps.

Check everything, merge piece by piece, evaluate the parents and the result on held-out text, and
only then put the finished folder in place.
"""

import math
import shutil
from collections.abc import Mapping
from typing import Any

import tqdm
from absl import logging
from ml_collections import ConfigDict

from clinmerge_jax import provenance
from clinmerge_jax.checkpoint.card import merge_card
from clinmerge_jax.checkpoint.digest import sha256
from clinmerge_jax.checkpoint.folder import Checkpoint, open_checkpoint
from clinmerge_jax.checkpoint.output import PROVENANCE_FILE, OutputFolder, OutputState
from clinmerge_jax.checkpoint.params import llama_config
from clinmerge_jax.checkpoint.safetensors import parse_json
from clinmerge_jax.data.documents import check_vocabulary, load_tokenizer
from clinmerge_jax.errors import BadInput
from clinmerge_jax.evaluation.retention import EncodedSet, Retention, encode_sets, held_out_sets, measure
from clinmerge_jax.merging.diagnostics import TensorDifference, by_module
from clinmerge_jax.merging.recipe import interpolation
from clinmerge_jax.merging.streaming import plan_merge, run_merge
from clinmerge_jax.report.tables import table


def run(config: ConfigDict) -> None:
    """Runs the merge that the config describes; see configs/merge.py for its fields."""
    parents = {role: open_checkpoint(config[role], f"config.{role}") for role in ("instruct", "clinical")}
    base = open_checkpoint(config.base, "config.base") if config.base else None
    recipe = interpolation(config.method, config.instruct, config.clinical, config.t, config.dtype)
    plan = plan_merge(recipe, list(parents.values()), _shard_bytes(config))
    models = {"base": base, "clinical": parents["clinical"], "instruct": parents["instruct"]}
    models = {name: checkpoint for name, checkpoint in models.items() if checkpoint}
    sets = _encoded_sets(config, models)
    credentialed = _credentialed(config, models)

    inputs = {role: provenance.fingerprint(checkpoint) for role, checkpoint in models.items()}
    identity = {
        "job": "merge",
        "recipe": {**recipe.to_json(), "models": [source["parameters"] for source in recipe.to_json()["models"]]},
        "max_shard_gb": config.max_shard_gb,
        "held_out": {held_out.name: held_out.sha256 for held_out in sets},
        "inputs": inputs,
    }
    with OutputFolder(config.output, identity, config.overwrite, _same_result) as output:
        _check_paths(output, models)
        state = output.open()
        if state is OutputState.FINISHED:
            print(f"{output.target} is finished already: same recipe, same inputs, nothing to do.")
            print("To make it again: --config.overwrite=True. Its tables are in README.md there.")
            return
        if state is OutputState.FRESH:
            _check_space(output, plan.nbytes)
        logging.info(
            "%s merge of %d tensors into %.2f GB at %s",
            recipe.method,
            len(plan.tensors),
            plan.nbytes / 1e9,
            output.target,
        )
        with _bar(plan.nbytes, "merge", "B") as bar:
            differences, digests = run_merge(plan, output, progress=bar.update)
        tables = [("How much the parents differ", _difference_text(differences))]
        record = {
            **provenance.environment(),
            "recipe": recipe.to_json(),
            "sha256": {role: _digests(checkpoint, digests) for role, checkpoint in models.items()},
            "credentialed": credentialed,
        }
        if sets:
            retention = _evaluate(models, sets, output)
            tables.append(("What the merge keeps", retention.text()))
            output.write_text("results.jsonl", retention.json_lines({**identity, **provenance.environment()}))
        card = merge_card(
            output.target.name, [(role, c.path) for role, c in parents.items()], recipe.to_json(), tables, credentialed
        )
        output.write_text("README.md", card)
        output.commit({**record, "differences": [difference.to_json() for difference in differences]})
    for heading, text in tables:
        print(f"\n{heading}\n{text}")
    print(f"\nThe merged checkpoint is {output.target} (loads in transformers as it is).")
    print(_next_step(config))


def _shard_bytes(config: ConfigDict) -> int:
    if not 0 < config.max_shard_gb < math.inf:
        raise BadInput(f"config.max_shard_gb: is {config.max_shard_gb}; give a size over 0, such as 5.0")
    return int(config.max_shard_gb * 1e9)


def _encoded_sets(config: ConfigDict, models: Mapping[str, Checkpoint]) -> list[EncodedSet]:
    """The held-out text, tokenized: done before the merge, so that what is wrong with it is said at once."""
    miniature = all(config[role].startswith("miniature:") for role in models)
    sets = held_out_sets(config.evaluate, miniature)
    if not sets:
        return []
    configs = [llama_config(checkpoint) for checkpoint in models.values()]
    context = min(llama.max_position_embeddings for llama in configs)
    encoded = encode_sets(sets, load_tokenizer(models["instruct"].path, "config.instruct"), context)
    for held_out in encoded:
        check_vocabulary(held_out.documents, min(llama.vocab_size for llama in configs), "config.instruct")
    return encoded


def _same_result(recorded: Mapping[str, Any], identity: Mapping[str, Any]) -> bool:
    """Whether a finished folder's provenance is that of this merge, wherever its inputs lie now."""
    old = recorded.get("identity", {})
    if {**old, "inputs": None} != {**identity, "inputs": None} or set(old["inputs"]) != set(identity["inputs"]):
        return False
    return all(
        provenance.same_inputs(old["inputs"][role], current, recorded["sha256"][role])
        for role, current in identity["inputs"].items()
    )


def _digests(checkpoint: Checkpoint, known: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 by name of the files of `provenance.fingerprint`; read where the merge did not."""
    files = [checkpoint.path / "config.json", *checkpoint.files]
    return {path.name: known.get(str(path)) or sha256(path) for path in files}


def _check_paths(output: OutputFolder, models: Mapping[str, Checkpoint]) -> None:
    for role, checkpoint in models.items():
        folder = checkpoint.path.resolve()
        if folder == output.target.resolve() or folder in output.target.resolve().parents:
            raise BadInput(f"config.output: {output.target} lies in config.{role}'s folder; name another folder")


def _check_space(output: OutputFolder, nbytes: int) -> None:
    free = shutil.disk_usage(output.partial).free
    if free < nbytes:
        raise BadInput(
            f"config.output: the result takes {nbytes / 1e9:.1f} GB and {output.target.parent} has {free / 1e9:.1f} GB"
            " free; free some or name a folder elsewhere"
        )


def _bar(total: int, label: str, unit: str) -> tqdm.tqdm:
    return tqdm.tqdm(total=total, desc=label, unit=unit, unit_scale=unit == "B", mininterval=0.5, leave=False)


def _evaluate(models: Mapping[str, Checkpoint], sets: list[EncodedSet], output: OutputFolder) -> Retention:
    merged = open_checkpoint(str(output.partial), "config.output")
    models = {**models, "merged": merged}
    with _bar(len(models) * sum(len(held_out.documents) for held_out in sets), "evaluate", "doc") as bar:
        return measure(models, sets, bar.update)


def _credentialed(config: ConfigDict, models: Mapping[str, Checkpoint]) -> bool:
    """Whether the config or a parent's provenance says that data under a use agreement went in."""
    paths = [checkpoint.path / PROVENANCE_FILE for checkpoint in models.values()]
    records = [parse_json(path.read_bytes(), path) for path in paths if path.is_file()]
    return config.credentialed or any(isinstance(record, dict) and record.get("credentialed") for record in records)


def _difference_text(differences: list[TensorDifference]) -> str:
    header = ["module", "tensors", "entries", "relative distance", "cosine", "lowest cosine", "collinear"]
    rows = [
        [
            row.module,
            str(row.tensors),
            f"{row.size:,}",
            f"{row.relative_distance:.4f}",
            f"{row.cosine:.6f}",
            f"{row.lowest_cosine:.6f}",
            f"{row.collinear} of {row.tensors}",
        ]
        for row in by_module(differences)
    ]
    note = (
        "Relative distance: |clinical - instruct| / |instruct|. Collinear: tensors with |cosine| over 0.9995, which"
        " slerp merges along the straight line, as linear does."
    )
    return f"{table(header, rows)}\n{note}"


def _next_step(config: ConfigDict) -> str:
    return (
        "Next: another balance with --config.t=0.3 (0 is instruct, 1 is clinical) or over depth with"
        " --config.t='self_attn=0,1; mlp=1,0; 0.5', into another --config.output;\nyour own models with"
        " --config.instruct=DIR --config.clinical=DIR, your own text with --config.evaluate=NAME=FILE.jsonl."
    )
