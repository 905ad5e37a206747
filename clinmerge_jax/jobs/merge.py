"""Merges an instruct and a clinical checkpoint, and measures what the merge keeps.

Check everything, merge (piece by piece in this process, or on the mesh of all processes), evaluate
the parents and the result on held-out text, and only then put the finished folder in place.
"""

import math
import shutil
from collections.abc import Mapping, Sequence

import jax
import tqdm
from absl import logging
from ml_collections import ConfigDict

from clinmerge_jax import provenance
from clinmerge_jax.checkpoint.card import merge_card
from clinmerge_jax.checkpoint.folder import LICENCE_FILES, Checkpoint, open_checkpoint
from clinmerge_jax.checkpoint.output import OutputFolder, OutputState
from clinmerge_jax.checkpoint.params import llama_config, load_params, write_weights
from clinmerge_jax.data.documents import check_vocabulary, load_tokenizer
from clinmerge_jax.errors import BadInput
from clinmerge_jax.evaluation.retention import EncodedSet, HeldOut, Retention, encode_sets, held_out_sets, measure
from clinmerge_jax.llama.parameters import parameters
from clinmerge_jax.merging.compatibility import check_same_tokens
from clinmerge_jax.merging.diagnostics import TensorDifference, by_module
from clinmerge_jax.merging.on_device import OnDeviceMerge, refuse_overflow
from clinmerge_jax.merging.plan import MergePlan, plan_merge
from clinmerge_jax.merging.recipe import interpolation
from clinmerge_jax.merging.streaming import run_merge
from clinmerge_jax.parallel import distributed
from clinmerge_jax.parallel.layout import Layout, make_layout
from clinmerge_jax.parallel.mesh import MeshShape
from clinmerge_jax.report.tables import table

_NEXT_STEP = (
    "Next: another balance with --config.t=0.3 (0 is instruct, 1 is clinical) or over depth with"
    " --config.t='self_attn=0,1; mlp=1,0; 0.5', into another --config.output;\nyour own models with"
    " --config.instruct=DIR --config.clinical=DIR, your own text with --config.evaluate=NAME=FILE.jsonl."
)


def run(config: ConfigDict) -> None:
    """Runs the merge that the config describes; see configs/merge.py for its fields."""
    parents = {role: open_checkpoint(config[role], f"config.{role}") for role in ("instruct", "clinical")}
    miniature = all(config[role].startswith("miniature:") for role in parents)
    base = config.base if config.base != "auto" else "miniature:base" * miniature
    recipe = interpolation(config.method, config.instruct, config.clinical, config.t, config.dtype)
    plan = plan_merge(recipe, list(parents.values()), _shard_bytes(config))
    models = {"base": open_checkpoint(base, "config.base")} if base else {}
    models |= {"clinical": parents["clinical"], "instruct": parents["instruct"]}
    for checkpoint in models.values():
        if checkpoint.config.get("model_type") == "llama":  # others merge by their tensors alone
            llama_config(checkpoint)
    mesh_shape = MeshShape(**config.mesh)
    layout = _mesh_layout(config.engine, plan, mesh_shape)
    held_out_text = held_out_sets(config.evaluate, miniature)
    sets = _encode(held_out_text, models, mesh_shape)
    credentialed = provenance.is_credentialed(config.credentialed, models.values())

    inputs = {role: provenance.fingerprint(checkpoint) for role, checkpoint in models.items()}
    identity = {
        "job": "merge",
        "recipe": {**recipe.to_json(), "models": [source["parameters"] for source in recipe.to_json()["models"]]},
        "max_shard_gb": config.max_shard_gb,
        "held_out": {held_out.name: held_out.sha256 for held_out in held_out_text},
        "credentialed": credentialed,
        "environment": provenance.environment(),
        "inputs": inputs,
    }
    distributed.refuse_difference("the config", config.to_dict())
    sizes = {role: [{n: f["bytes"] for n, f in i["files"].items()}, i["carried"]] for role, i in inputs.items()}
    distributed.refuse_difference("what lies in the folder", sizes)
    with OutputFolder(config.output, identity, config.overwrite, provenance.same_result) as output:
        distributed.at_bad_input(output.discard)
        output.refuse_overlap({f"config.{role}": checkpoint.path for role, checkpoint in models.items()})
        state = OutputState(distributed.on_first(lambda: output.open().value))
        if state is OutputState.FINISHED:
            if distributed.is_first():
                print(f"{output.target} is finished already: same recipe, same inputs, nothing to do.")
                print("To make it again: --config.overwrite=True. Its tables are in README.md there.")
            return
        if state is OutputState.RESUMED:
            logging.info("continuing the interrupted run in %s", output.partial)
        elif distributed.is_first():
            _check_space(output, plan.nbytes)
        logging.info(
            "%s merge of %d tensors into %s at %s",
            recipe.method,
            len(plan.tensors),
            _size(plan.nbytes),
            output.target,
        )
        if layout is None:
            with _bar(plan.nbytes, "merge", "B") as bar:
                differences, digests = run_merge(plan, output, progress=bar.update)
        else:
            differences, digests = _merge_on_mesh(plan, layout, output), {}
        retention = _evaluate(models, sets, mesh_shape, output) if sets else None
        if not distributed.is_first():
            return
        tables = [("How much the parents differ", _difference_text(differences))]
        record = {
            **provenance.environment(),
            "recipe": recipe.to_json(),
            "sha256": {role: provenance.digests(checkpoint, digests) for role, checkpoint in models.items()},
            "credentialed": credentialed,
        }
        if retention:
            tables.append(("What the merge keeps", retention.text()))
            output.write_text("results.jsonl", retention.json_lines(record))
        for pattern in LICENCE_FILES:  # the clinical parent's terms hold too; instruct's were carried
            for path in sorted(parents["clinical"].path.glob(pattern)):
                output.copy(path, f"clinical.{path.name}")
        card = merge_card(
            output.target.name, [(role, c.path) for role, c in parents.items()], recipe.to_json(), tables, credentialed
        )
        output.write_text("README.md", card)
        output.commit({**record, "differences": [difference.to_json() for difference in differences]})
    for heading, text in tables:
        print(f"\n{heading}\n{text}")
    print(f"\nThe merged checkpoint is {output.target} (loads in transformers as it is).")
    print(_NEXT_STEP)


def _mesh_layout(engine: str, plan: MergePlan, wanted: MeshShape) -> Layout | None:
    """Where the mesh engine puts the models; None for the streaming engine.

    Raises:
      BadInput: the engine is unknown or cannot do this merge, or the mesh does not fit.
    """
    if engine == "streaming":
        if jax.process_count() > 1:
            raise BadInput("config.engine: streaming merges in one process; give mesh, or leave out --distributed")
        return None
    if engine != "mesh":
        raise BadInput(f"config.engine: {engine!r} is unknown; there are streaming, mesh")
    if plan.stacked:
        raise BadInput("config.engine: mesh does not stack layers; give streaming")
    config, *_ = [llama_config(source) for source in plan.sources.values()]
    names = {name for row in parameters(config) for name in row.names(config)}
    extra = next((name for name in plan.tensors if name not in names), None)
    if extra is not None:  # RoPE buffers of old conversions
        raise BadInput(f"config.engine: mesh does not carry {plan.leading.label}'s tensor {extra}; give streaming")
    return make_layout(config, wanted)


def _merge_on_mesh(plan: MergePlan, layout: Layout, output: OutputFolder) -> list[TensorDifference]:
    """Loads the parents cut over the mesh, merges them there, and writes the result from there."""
    models = list(plan.sources.values())
    with _bar(sum(source.nbytes for source in models), "load", "B") as bar:
        sources = [load_params(source, mesh=layout.mesh, progress=bar.update)[1] for source in models]
    engine = OnDeviceMerge(layout, sources, [str(source.path) for source in models])
    differences = engine.differences(plan.recipe)
    merged = engine.merge(plan.recipe)
    refuse_overflow(merged, layout)
    with _bar(plan.nbytes, "write", "B") as bar:
        write_weights(merged, layout, plan.files, output, bar.update)
    if distributed.is_first():
        plan.write_small_files(output)
    distributed.barrier("merged")
    return [differences[name] for names in plan.files.values() for name in names]


def _shard_bytes(config: ConfigDict) -> int:
    if not 0 < config.max_shard_gb < math.inf:
        raise BadInput(f"config.max_shard_gb: is {config.max_shard_gb}; give a size over 0, such as 5.0")
    return int(config.max_shard_gb * 1e9)


def _encode(
    held_out_text: Sequence[HeldOut], models: Mapping[str, Checkpoint], mesh_shape: MeshShape
) -> list[EncodedSet]:
    """The held-out text, tokenized: done before the merge, so that what is wrong with it is said at once."""
    if not held_out_text:
        return []
    configs = {role: llama_config(checkpoint) for role, checkpoint in models.items()}
    for llama in configs.values():
        make_layout(llama, mesh_shape)
    context = min(llama.max_position_embeddings for llama in configs.values())
    encoded = encode_sets(held_out_text, load_tokenizer(models["instruct"].path, "config.instruct"), context)
    for role, checkpoint in models.items():
        check_same_tokens(models["instruct"], checkpoint)  # all are scored on instruct's tokens
        for held_out in encoded:
            check_vocabulary(held_out.documents, configs[role].vocab_size, f"config.{role}")
    return encoded


def _check_space(output: OutputFolder, nbytes: int) -> None:
    free = shutil.disk_usage(output.partial).free
    if free < nbytes:
        raise BadInput(
            f"config.output: the result takes {_size(nbytes)} and {output.target.parent} has {_size(free)}"
            " free; free some or name a folder elsewhere"
        )


def _size(nbytes: int) -> str:
    return tqdm.tqdm.format_sizeof(nbytes, "B")


def _bar(total: int, label: str, unit: str) -> tqdm.tqdm:
    return tqdm.tqdm(
        total=total,
        desc=label,
        unit=unit,
        unit_scale=unit == "B",
        mininterval=0.5,
        leave=False,
        disable=not distributed.is_first(),
    )


def _evaluate(
    models: Mapping[str, Checkpoint], sets: list[EncodedSet], mesh_shape: MeshShape, output: OutputFolder
) -> Retention:
    merged = open_checkpoint(str(output.partial), "config.output")
    models = {**models, "merged": merged}
    with _bar(len(models) * sum(len(held_out.documents) for held_out in sets), "evaluate", "doc") as bar:
        return measure(models, sets, mesh_shape, bar.update)


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
