"""Writes the difference of two checkpoints as a LoRA adapter in PEFT's layout.

Checks both, measures how much each tensor differs, factors the differences one by one, and only then moves the finished
folder into place. For a matrix with the difference D = model - base, the adapter keeps the product B A nearest to D in
the sum of squares.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import tqdm
from absl import logging
from ml_collections import ConfigDict

from clinmerge_jax import provenance
from clinmerge_jax.checkpoint.adapters.adapter import CONFIG_FILE, EMBEDDINGS, is_tied, last_part
from clinmerge_jax.checkpoint.adapters.adapter_files import Target, config_text, plan_targets, write_weights
from clinmerge_jax.checkpoint.card import adapter_card, copy_licences, shown_name
from clinmerge_jax.checkpoint.folder import Checkpoint, open_checkpoint
from clinmerge_jax.checkpoint.formats.safetensors import DTYPES, read_tensor
from clinmerge_jax.checkpoint.output import OutputFolder, OutputState
from clinmerge_jax.checkpoint.tokenizers.tokenizer import check_token_ids
from clinmerge_jax.errors import BadInput
from clinmerge_jax.merging.compatibility import check_compatible
from clinmerge_jax.merging.diagnostics import module_of
from clinmerge_jax.merging.inspection.difference import Difference
from clinmerge_jax.merging.inspection.low_rank import factor, squared_remainder
from clinmerge_jax.report.adapter import adapter_tables, share

_DTYPES = {str(dtype): dtype for dtype in DTYPES.values()}
_SQUARES = "squares"  # key in the journal


def run(config: ConfigDict) -> None:
    """Extracts the adapter that the config describes: `config.model` minus `config.base`.

    The config's fields: `model` (the fine-tuned checkpoint) and `base`; `rank` (0: the full rank of each matrix, so the
    adapter is the difference itself up to rounding); `alpha` (0: equal to the rank, so the scaling is 1); `dtype` of
    the factors ("": float32 whatever the models' dtype, because a product of factors rounded to bfloat16 is off by some
    thousandths); `modules` (parts of names, separated by commas: matrices whose name contains one are extracted;
    embed_tokens and lm_head are saved whole, in the model's own dtype); `output`, `overwrite`, `credentialed`.

    Raises:
      BadInput: the checkpoints do not belong together or do not differ, or a field is wrong.
    """
    model, base = (open_checkpoint(config[role], f"config.{role}") for role in ("model", "base"))
    check_compatible(base, model)
    for checkpoint in (model, base):
        check_token_ids(checkpoint)
    _check_fields(config)
    filters = tuple(dict.fromkeys(text.strip() for text in config.modules.split(",") if text.strip()))
    wanted = _matching(model, filters)
    credentialed = provenance.is_credentialed(config.credentialed, (model, base))
    identity = {
        "job": "extract_lora",
        "rank": config.rank,
        "alpha": config.alpha,
        "dtype": config.dtype or "float32",
        "modules": sorted(filters),
        "credentialed": credentialed,
        "environment": provenance.environment(),
        "inputs": {"model": provenance.fingerprint(model), "base": provenance.fingerprint(base)},
    }
    with OutputFolder(config.output, identity, config.overwrite, provenance.same_result) as output:
        output.refuse_overlap({"config.model": model.path, "config.base": base.path})
        state = output.open()
        if state is OutputState.FINISHED:
            print(output.finished_text("same models, rank and modules", "Its tables are in"))
            return
        if state is OutputState.RESUMED:
            logging.info("continuing the interrupted run in %s", output.partial)
        with Difference(model, base) as difference:
            squares = _measure(difference, output)
            _refuse_equal(model, base, squares, wanted)
            changed = [name for name in wanted if squares[name]]
            targets = plan_targets(model, changed, config.rank, _DTYPES[config.dtype or "float32"])
            rank = max(target.rank for target in targets)
            alpha = config.alpha or rank
            alpha = int(alpha) if alpha == int(alpha) else alpha  # PEFT expects an integer, but accepts other numbers
            nbytes = sum(target.nbytes for target in targets)
            if state is OutputState.FRESH:
                output.check_space(
                    nbytes, "the adapter", "free some space, name a folder elsewhere or give a lower rank"
                )
            left = _factor(difference, targets, alpha / rank, output)
        output.write_text(CONFIG_FILE, config_text(config.base, base, model, targets, rank, alpha))
        for path in model.carried_files():
            output.copy(path)
        copy_licences(output, model.path, [("base", base.path)])
        tables = adapter_tables(targets, squares, left)
        parents = [("base", shown_name(config.base), base.path)]
        parents.append(("fine-tuned model", shown_name(config.model), model.path))
        card = adapter_card(output.target.name, parents, rank, alpha, tables, credentialed)
        output.write_text("README.md", card)
        known = difference.sha256()
        covered = math.fsum(squares[name] for name in changed)
        kept = covered - math.fsum(left.values())
        of_covered, of_all = kept / covered, kept / math.fsum(squares.values())
        output.commit(
            {
                **provenance.environment(),
                "sha256": {"model": provenance.digests(model, known), "base": provenance.digests(base, known)},
                "credentialed": credentialed,
                "rank": rank,
                "alpha": alpha,
                "kept_of_covered": of_covered,
                "kept_of_all": of_all,
                "squared_difference": squares,
                "squared_remainder": left,
            }
        )
    for heading, text in tables:
        print(f"\n{heading}\n{text}")
    print(
        f"\nThe adapter is {output.target} ({tqdm.tqdm.format_sizeof(nbytes, 'B')}, rank {rank}); it keeps"
        f" {share(of_covered)} of the difference of its tensors, {share(of_all)} of that of the whole model."
    )
    print(
        f"Next: name {config.base}+{output.target} as a model of a recipe (--config.recipe=FILE), or load it with PEFT:"
        f" PeftModel.from_pretrained(base, {str(output.target)!r});\nor keep more of the difference with a higher"
        " --config.rank or more --config.modules and another --config.output."
    )


def _check_fields(config: ConfigDict) -> None:
    if config.rank < 0:
        raise BadInput(f"config.rank: is {config.rank}; give a positive integer, or 0 for the full rank")
    if not 0 <= config.alpha < math.inf:
        raise BadInput(f"config.alpha: is {config.alpha}; give a positive number, or 0 to use the rank")
    if config.dtype not in ("", *_DTYPES):
        raise BadInput(f"config.dtype: {config.dtype!r} is unknown; choose from {', '.join(_DTYPES)}")


def _matching(model: Checkpoint, filters: Sequence[str]) -> list[str]:
    """The matrices that the filters select, in the order of the files.

    Raises:
      BadInput: a filter matches no matrix, or matches a tied embedding, which an adapter cannot change.
    """
    if not filters:
        raise BadInput("config.modules: is empty; give parts of names such as q_proj,v_proj")
    matrices = [name for name, entry in model.tensors.items() if name.endswith(".weight") and len(entry.shape) == 2]
    for text in filters:
        if any(text in name for name in matrices):
            continue
        if any(text in name for name in model.tensors):
            raise BadInput(
                f"config.modules: {text!r} matches no matrix, and LoRA can change only matrices; leave it out"
            )
        raise BadInput(f"config.modules: {text!r} matches no tensor of {model.path}; correct it or leave it out")
    wanted = [name for name in matrices if any(text in name for text in filters)]
    shared = next((name for name in wanted if last_part(name) in EMBEDDINGS), None)
    if shared and is_tied(model):
        raise BadInput(
            f"config.modules: {shared} is shared between embedding and output (tie_word_embeddings), and an adapter"
            " would change only one of them; leave it out"
        )
    return wanted


def _measure(difference: Difference, output: OutputFolder) -> dict[str, float]:
    """The sum of squares of each tensor's difference; read from the journal if an interrupted run got that far.

    Raises:
      BadInput: a tensor has values that are not finite.
    """
    journal = output.read_journal()
    if _SQUARES not in journal:
        tensors = difference.model.tensors
        with _bar("compare", sum(entry.size for entry in tensors.values())) as bar:
            journal[_SQUARES] = {}
            for name, entry in tensors.items():
                journal[_SQUARES][name] = difference.square(name)
                bar.update(entry.size)
        output.write_journal(journal)
    return journal[_SQUARES]


def _refuse_equal(model: Checkpoint, base: Checkpoint, differences: Mapping[str, float], wanted: Sequence[str]) -> None:
    if not any(differences.values()):
        raise BadInput(
            f"{model.label}: {model.path} has the same weights as {base.path} ({base.label}); give two models that"
            " differ"
        )
    if not any(differences[name] for name in wanted if last_part(name) not in EMBEDDINGS):
        modules = dict.fromkeys(module_of(name) for name, square in differences.items() if square)
        raise BadInput(
            f"config.modules: names no matrix to factor that differs; the models differ in {', '.join(modules)}: name"
            " a matrix among these, but not embed_tokens or lm_head"
        )


def _factor(
    difference: Difference, targets: Sequence[Target], scaling: float, output: OutputFolder
) -> dict[str, float]:
    """Writes the weight file; returns the part of each squared difference that the adapter does not cover.

    Raises:
      BadInput: a factor overflows its dtype.
    """

    def values(target: Target) -> tuple[list[np.ndarray], float]:
        if not target.rank:
            return [read_tensor(difference.model.tensors[target.name])], 0.0
        d_OI = difference.matrix(target.name)
        stored = []
        for factor_, (name, dtype, _) in zip(factor(d_OI, target.rank), target.stored, strict=True):
            with np.errstate(over="ignore"):  # overflow is refused below
                factor_ = np.ascontiguousarray(factor_ / np.float32(math.sqrt(scaling))).astype(dtype)
            if not np.isfinite(factor_).all():
                raise BadInput(f"config.dtype: {name} does not fit {dtype}; give float32")
            stored.append(factor_)
        a_RI, b_OR = (factor_.astype(np.float32) for factor_ in stored)
        return stored, squared_remainder(d_OI, a_RI, b_OR, scaling)

    with _bar("factor", sum(math.prod(target.shape) for target in targets)) as bar:
        return write_weights(targets, values, output, bar.update)


def _bar(label: str, entries: int) -> tqdm.tqdm:
    return tqdm.tqdm(total=entries, desc=label, unit_scale=True, mininterval=0.5, leave=False)
