"""Merges checkpoints, and measures what the merge keeps.

Reads the config or the recipe file, checks everything, merges (piece by piece in this process, or on the mesh of all
processes), evaluates the parents and the result on held-out text, and only then moves the finished folder into place.
The merges of a recipe file with several documents run one after another.
"""

import dataclasses
import hashlib
import math
import pathlib
import tempfile
from collections.abc import Mapping, Sequence

import jax
import tqdm
from absl import logging
from ml_collections import ConfigDict

from clinmerge_jax import provenance
from clinmerge_jax.checkpoint.adapters.adapter import split_location
from clinmerge_jax.checkpoint.card import copy_licences, merge_card, shown_name
from clinmerge_jax.checkpoint.folder import Checkpoint, open_checkpoint
from clinmerge_jax.checkpoint.output import OutputFolder, OutputState
from clinmerge_jax.checkpoint.parameters.params import llama_config, load_params, write_weights
from clinmerge_jax.checkpoint.tokenizers.tokenizer import load_tokenizer
from clinmerge_jax.data.documents import check_vocabulary
from clinmerge_jax.errors import BadInput
from clinmerge_jax.evaluation import trade_off
from clinmerge_jax.evaluation.composed import Composition
from clinmerge_jax.evaluation.retention import (
    EncodedSet,
    HeldOut,
    Retention,
    encode_sets,
    held_out_sets,
    measure,
)
from clinmerge_jax.evaluation.systems import System
from clinmerge_jax.llama.config import FAMILIES
from clinmerge_jax.merging.compatibility import check_same_tokens
from clinmerge_jax.merging.diagnostics import TensorDifference, by_module
from clinmerge_jax.merging.engines.on_device import OnDeviceMerge, refuse_overflow
from clinmerge_jax.merging.engines.streaming import run_merge
from clinmerge_jax.merging.methods import METHODS
from clinmerge_jax.merging.plan import MergePlan, Model, open_model, plan_merge, result_dtype
from clinmerge_jax.merging.recipes import mergekit_yaml
from clinmerge_jax.merging.recipes.recipe import Recipe, VocabularyChoice, two_parents
from clinmerge_jax.parallel import distributed
from clinmerge_jax.parallel.layout import Layout, make_layout
from clinmerge_jax.parallel.mesh import MeshShape
from clinmerge_jax.report.merge_plan import plan_text, vocabulary_text
from clinmerge_jax.report.retention import retention_text
from clinmerge_jax.report.tables import table
from clinmerge_jax.report.trade_off import trade_off_png, trade_off_text

_NEXT_STEP_OF_A_RECIPE = (
    "Next: change the recipe, check it with --config.dry_run, and merge with another --config.output; measure the\n"
    "models on your own text with --config.evaluate=NAME=FILE.jsonl."
)
_PICTURE = "trade_off.png"
_SWEEP = ("0.1", "0.3", "0.5", "0.7", "0.9")  # further merges of the miniature that are measured but not written
_NEXT_STEP = (
    "Next: try another balance with --config.t=0.3 (0 is instruct, 1 is clinical) or over depth with"
    " --config.t='self_attn=0,1; mlp=1,0; 0.5', and another --config.output;\nor your own models with"
    " --config.instruct=DIR --config.clinical=DIR, your own text with --config.evaluate=NAME=FILE.jsonl."
)
_WITHOUT_SWEEP = ("passthrough", "model_stock", "arcee_fusion", "nearswap")  # t is no balance, or a merge takes none
# Config fields that a recipe file replaces.
_OF_THE_RECIPE = ("instruct", "clinical", "base", "method", "t", "dtype", "tokenizer", "chat_template")


@dataclasses.dataclass(frozen=True)
class _Stage:
    """One merge of the command.

    Attributes:
      recipe: what is merged.
      output: the folder of the result.
      roles: the label in tables and records of each model that is merged or only measured.
      final: whether this is the last merge, whose result the command asks for.
    """

    recipe: Recipe
    output: str
    roles: Mapping[str, str]
    final: bool = True

    def field(self, model: str) -> str:
        """How messages name the place where a model was given."""
        return f"{self.recipe.file}: {model}" if self.recipe.file else f"config.{self.roles[model]}"


def run(config: ConfigDict) -> None:
    """Runs the merge that the config describes; see configs/merge.py for its fields."""
    distributed.refuse_difference("the config", config.to_dict())
    stages = _stages(config)
    distributed.refuse_difference("what is merged", {"recipe": [stage.recipe.to_json() for stage in stages]})
    results: dict[str, Model] = {}
    plans = []
    with tempfile.TemporaryDirectory() as planned:  # tokenizers and configs for later stages' plans
        for stage in stages:
            plans.append(_plan(config, stage, results))
            if not stage.final:
                folder = pathlib.Path(tempfile.mkdtemp(dir=planned))
                results[stage.output] = Model(plans[-1].as_checkpoint(stage.output, folder))
            if config.dry_run and distributed.is_first():
                print(f"\n{plan_text(plans[-1], stage.output, stage.roles)}")
    if config.dry_run:
        if distributed.is_first():
            print("\nNothing was written: leave out --config.dry_run to merge.")
        return
    for stage, plan in zip(stages, plans):
        if set(results) & set(plan.models):  # an earlier stage has written it since
            plan = _plan(config, stage, {})
        _merge(config, stage, plan)


def _stages(config: ConfigDict) -> list[_Stage]:
    """The merges that the config or its recipe file describes, in the order in which they run."""
    if config.recipe:
        logging.info("config.recipe: %s defines the merge; %s are ignored", config.recipe, ", ".join(_OF_THE_RECIPE))
        read = mergekit_yaml.read_stages(config.recipe, config.output, config.seed)
        return [_Stage(one.recipe, one.output, _roles(one.recipe), one is read[-1]) for one in read]
    base = config.base
    if base == "auto":
        base = "miniature:base" * _all_miniature(config)
    recipe = _recipe(config, base, config.t)
    roles = {base: "base"} if base else {}
    return [_Stage(recipe, config.output, {**roles, config.clinical: "clinical", config.instruct: "instruct"})]


def _recipe(config: ConfigDict, base: str, t: str) -> Recipe:
    known = {name for method in METHODS.values() for name in (*method.parameters, *method.source_parameters)} - {"t"}
    given = {name: config["lambda_" if name == "lambda" else name] for name in sorted(known)}
    return two_parents(
        config.method,
        config.instruct,
        config.clinical,
        t,
        base=base,
        parameters={name: value for name, value in given.items() if value != ""},
        dtype=config.dtype,
        seed=config.seed,
        leading=config.instruct,
        chat_template=config.chat_template,
        vocabulary=VocabularyChoice(
            source=config.tokenizer,
            pad_to_multiple_of=config.pad_to_multiple_of,
            missing=config.missing_rows,
            cut_to_common=config.cut_to_common,
            special_rows=config.special_rows,
        ),
    )


def _all_miniature(config: ConfigDict) -> bool:
    return not config.recipe and all(config[role].startswith("miniature:") for role in ("instruct", "clinical"))


def _roles(recipe: Recipe) -> dict[str, str]:
    """The label of each model: the last part of its location, or all of it where two models share that part."""
    short = {model: pathlib.PurePath(model).name for model in recipe.models}
    return {model: name if list(short.values()).count(name) == 1 else model for model, name in short.items()}


def _plan(config: ConfigDict, stage: _Stage, results: Mapping[str, Model]) -> MergePlan:
    """Opens the models, except those that earlier stages will write, and plans the merge."""
    recipe = stage.recipe
    models = [results.get(model) or open_model(model, stage.field(model)) for model in recipe.models]
    plan = plan_merge(recipe, models, _shard_bytes(config))
    for model in models:
        if model.checkpoint.config.get("model_type") in FAMILIES:  # other families need only their tensors
            llama_config(model.checkpoint)
    _mesh_layout(config.engine, plan, MeshShape(**config.mesh))
    return plan


def _merge(config: ConfigDict, stage: _Stage, plan: MergePlan) -> None:
    """Runs one merge into its output folder."""
    recipe, roles = stage.recipe, stage.roles
    mesh_shape = MeshShape(**config.mesh)
    layout = _mesh_layout(config.engine, plan, mesh_shape)
    merged = {roles[model]: one for model, one in plan.models.items()}
    measured = {role: open_checkpoint(model, f"config.{role}") for model, role in roles.items() if role not in merged}
    checkpoints = {role: merged[role].checkpoint if role in merged else measured[role] for role in roles.values()}
    adapters = {f"{role}, adapter": one.adapter for role, one in merged.items() if one.adapter}
    asks = (
        stage.final
        and config.evaluate == "auto"
        and _all_miniature(config)
        and {"instruct", "clinical"} <= set(checkpoints)  # two models, not one twice
        and not adapters
        and jax.process_count() == 1
    )
    held_out_text = held_out_sets(config.evaluate, _all_miniature(config)) if stage.final and not asks else []
    evaluated = {role: one for role, one in checkpoints.items() if f"{role}, adapter" not in adapters}
    sets = _encode(held_out_text, evaluated, plan, mesh_shape)
    credentialed = provenance.is_credentialed(config.credentialed, [*checkpoints.values(), *adapters.values()])

    inputs = {role: provenance.fingerprint(one) for role, one in {**checkpoints, **adapters}.items()}
    identity = {
        "job": "merge",
        "recipe": recipe.renamed(roles).to_json(),
        "max_shard_gb": config.max_shard_gb,
        "held_out": {held_out.name: held_out.sha256 for held_out in held_out_text},
        "asked": [trade_off.digest(), *_SWEEP] if asks else "",
        "credentialed": credentialed,
        "environment": provenance.environment(),
        "inputs": inputs,
    }
    if plan.vocabulary is not None:
        identity["tokenizer"] = {name: _sha256(content) for name, content in plan.vocabulary.files.items()}
    sizes = {role: [{n: f["bytes"] for n, f in i["files"].items()}, i["carried"]] for role, i in inputs.items()}
    distributed.refuse_difference("the content of the folder", sizes)
    with OutputFolder(stage.output, identity, config.overwrite, provenance.same_result) as output:
        distributed.at_bad_input(output.discard)
        output.refuse_overlap({stage.field(model): checkpoints[role].path for model, role in roles.items()})
        output.refuse_overlap(
            {stage.field(model): one.adapter.path for model, one in plan.models.items() if one.adapter}
        )
        state = OutputState(distributed.on_first(lambda: output.open().value))
        if state is OutputState.FINISHED:
            if distributed.is_first():
                print(output.finished_text("same recipe, same inputs", "Its tables are in"))
            return
        if state is OutputState.RESUMED:
            logging.info("continuing the interrupted run in %s", output.partial)
        elif distributed.is_first():
            output.check_space(plan.nbytes)
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
        retention = _evaluate(evaluated, sets, mesh_shape, output) if sets else None
        answered = _ask(config, stage, checkpoints, output) if asks else None
        if not distributed.is_first():
            return
        tables = [(f"How much {' and '.join(_first_two(plan, roles))} differ", _difference_text(differences))]
        if plan.vocabulary is not None:
            tables.append(("Vocabulary", vocabulary_text(plan, roles)))
        sources = {**checkpoints, **adapters}
        record = {
            **provenance.environment(),
            "recipe": recipe.to_json(),
            "sha256": {role: provenance.digests(one, digests) for role, one in sources.items()},
            "credentialed": credentialed,
        }
        if retention:
            tables.append(("What the merge keeps", retention_text(retention)))
            output.write_text("results.jsonl", retention.json_lines(record))
        if answered:
            tables.append(("What the merge keeps", f"{trade_off_text(answered)}\n\n![trade-off]({_PICTURE})"))
            output.write_text("results.jsonl", answered.json_lines(record))
            output.write_bytes(_PICTURE, trade_off_png(answered))
        parents = _parents(plan, roles)
        licensed = [(pathlib.PurePath(role).name.replace(", ", "-"), folder) for role, _, folder in parents]
        copy_licences(output, plan.leading.path, licensed)
        written = dataclasses.replace(recipe, dtype=str(result_dtype(recipe, next(iter(plan.tensors.values())).dtype)))
        folders = {
            model: str(one.checkpoint.path) for model, one in plan.models.items() if model.startswith("miniature:")
        }
        output.write_text(mergekit_yaml.RECIPE_FILE, mergekit_yaml.write(written.renamed(folders)))
        described = mergekit_yaml.write(written.renamed({model: shown_name(model) for model in plan.models}))
        card = merge_card(output.target.name, parents, recipe.method, described, tables, credentialed)
        output.write_text("README.md", card)
        output.commit({**record, "differences": [difference.to_json() for difference in differences]})
    if answered:
        print(f"\n{trade_off_text(answered)}\n\nThe same as a picture, with a sweep over t:"
              f" {output.target / _PICTURE}. README.md beside it has how the models differ.")  # fmt: skip
    else:
        for heading, text in tables:
            print(f"\n{heading}\n{text}")
    print(f"\nThe merged checkpoint is {output.target} (loads in transformers as it is).")
    if stage.final:
        print(_NEXT_STEP_OF_A_RECIPE if recipe.file else _NEXT_STEP)


def _sha256(content: bytes | pathlib.Path) -> str:
    return hashlib.sha256(content if isinstance(content, bytes) else content.read_bytes()).hexdigest()


def _first_two(plan: MergePlan, roles: Mapping[str, str]) -> list[str]:
    """The models whose difference is recorded: for most methods the parents, else the base and the first model."""
    inputs = next(iter(plan.tensors.values())).inputs[:2]
    return [roles[one.model] for one in inputs] if len(inputs) > 1 else ["a model", "itself"]


def _parents(plan: MergePlan, roles: Mapping[str, str]) -> list[tuple[str, str, pathlib.Path]]:
    """Role, name and folder of every model and every adapter; each has its own licence terms."""
    parents = []
    for model, one in plan.models.items():
        place, adapter_place = split_location(model) if one.adapter else (model, "")
        parents.append((roles[model], shown_name(place), one.checkpoint.path))
        if one.adapter:
            parents.append((f"{roles[model]}, adapter", shown_name(adapter_place), one.adapter.path))
    return parents


def _mesh_layout(engine: str, plan: MergePlan, wanted: MeshShape) -> Layout | None:
    """The layout of the models for the mesh engine; None for the streaming engine.

    Raises:
      BadInput: the engine is unknown or cannot do this merge, or the mesh does not fit.
    """
    if engine == "streaming":
        if jax.process_count() > 1:
            raise BadInput("config.engine: streaming merges in one process; give mesh, or leave out --distributed")
        return None
    if engine != "mesh":
        raise BadInput(f"config.engine: {engine!r} is unknown; choose from streaming, mesh")
    if plan.in_files_alone:
        raise BadInput(f"config.engine: mesh cannot {plan.in_files_alone}; give streaming")
    config, *_ = [llama_config(model.checkpoint) for model in plan.models.values()]
    return make_layout(config, wanted)


def _merge_on_mesh(plan: MergePlan, layout: Layout, output: OutputFolder) -> list[TensorDifference]:
    """Loads the parents sharded over the mesh, merges them there, and writes the result from the devices."""
    models = [model.checkpoint for model in plan.models.values()]
    with _bar(sum(source.nbytes for source in models), "load", "B") as bar:
        sources = [load_params(source, mesh=layout.mesh, progress=bar.update)[1] for source in models]
    engine = OnDeviceMerge(layout, sources, [str(source.path) for source in models])
    differences = engine.differences(plan.recipe)
    merged = engine.merge(plan.recipe)
    refuse_overflow(merged, layout)
    with _bar(plan.nbytes, "write", "B") as bar:
        write_weights(merged, layout, plan.files, output, bar.update, plan.leading.naming)
    if distributed.is_first():
        plan.write_small_files(output)
    distributed.barrier("merged")
    return [differences[name] for names in plan.files.values() for name in names]


def _shard_bytes(config: ConfigDict) -> int:
    if not 0 < config.max_shard_gb < math.inf:
        raise BadInput(f"config.max_shard_gb: is {config.max_shard_gb}; give a size over 0, such as 5.0")
    return int(config.max_shard_gb * 1e9)


def _encode(
    held_out_text: Sequence[HeldOut], models: Mapping[str, Checkpoint], plan: MergePlan, mesh_shape: MeshShape
) -> list[EncodedSet]:
    """Tokenizes the held-out text; called before the merge, so that errors in it are reported at once."""
    if not held_out_text:
        return []
    if plan.vocabulary is not None and not plan.vocabulary.same_ids:
        raise BadInput("config.evaluate: the models' tokens differ, so their losses cannot be compared; leave it out")
    configs = {role: llama_config(checkpoint) for role, checkpoint in models.items()}
    for llama in configs.values():
        make_layout(llama, mesh_shape)
    context = min(llama.max_position_embeddings for llama in configs.values())
    encoded = encode_sets(held_out_text, load_tokenizer(plan.leading.path, plan.leading.label), context)
    for role, checkpoint in models.items():
        remedy = "so their losses cannot be compared; give --config.evaluate= to leave them out"
        check_same_tokens(plan.leading, checkpoint, remedy)  # all are scored on the leading model's tokens
        for held_out in encoded:
            tokens = (document.tokens for document in held_out.documents)
            check_vocabulary(tokens, configs[role].vocab_size, checkpoint.label)
    return encoded


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


def _ask(
    config: ConfigDict, stage: _Stage, checkpoints: Mapping[str, Checkpoint], output: OutputFolder
) -> trade_off.TradeOff:
    """Asks the miniature's tasks of parents, base, the merged model, and merges with other t that are not written."""
    systems = [System(role, 0, role, checkpoint=checkpoint) for role, checkpoint in checkpoints.items()]
    systems.append(System("merged", 0, "merged", checkpoint=open_checkpoint(str(output.partial), "config.output")))
    raw = [system for system in systems if system.name in ("base", "clinical")]
    chat = [system for system in systems if system not in raw]
    recipe = stage.recipe
    by_place = {place: checkpoints[role] for place, role in stage.roles.items()}
    sweep = {}
    merged_t = _number(config.t)
    for t in _SWEEP:
        if recipe.method in _WITHOUT_SWEEP or float(t) == merged_t:
            continue
        other = _recipe(config, recipe.base or "", t)
        models = tuple(by_place[model] for model in other.models)
        sweep[t] = System(f"t = {t}", 0, t, checkpoint=models[0], composition=Composition(recipe.method, models, other))
    total = trade_off.count_items(len(raw), len(chat), len(sweep))
    with _bar(total, "evaluate", "item") as bar:
        found = trade_off.measure(raw, chat, sweep, config.mesh.to_dict(), bar.update)
    return dataclasses.replace(found, t=merged_t)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


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
        "Relative distance: |second - first| / |first|. Collinear: tensors with |cosine| over 0.9995, which"
        " slerp merges along the straight line, as linear does."
    )
    return f"{table(header, rows)}\n{note}"
