"""Writes the difference of two checkpoints as a LoRA adapter in the layout of PEFT.

Check both, measure by how much each tensor differs, factor the differences one by one, and only then put the finished
folder in place. Of a matrix with the difference D = model - base, the adapter keeps the product B A nearest to D in the
sum of squares (Eckart and Young 1936, doi 10.1007/BF02288367).

Legend: O out, I in, R rank.
"""

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tqdm
import yaml
from absl import logging
from ml_collections import ConfigDict

from clinmerge_jax import provenance
from clinmerge_jax.checkpoint import remote
from clinmerge_jax.checkpoint.adapter import CONFIG_FILE, EMBEDDINGS, PREFIX, WEIGHTS_FILE, is_tied, last_part
from clinmerge_jax.checkpoint.card import front_matter
from clinmerge_jax.checkpoint.folder import LICENCE_FILES, Checkpoint, open_checkpoint
from clinmerge_jax.checkpoint.output import JOURNAL_FILE, OutputFolder, OutputState, sync
from clinmerge_jax.checkpoint.safetensors import DTYPES, TensorEntry, header_bytes, read_into, read_tensor
from clinmerge_jax.errors import BadInput
from clinmerge_jax.merging.compatibility import check_compatible
from clinmerge_jax.merging.diagnostics import module_of
from clinmerge_jax.report.tables import table

_DTYPES = {str(dtype): dtype for dtype in DTYPES.values()}
_PIECE_ENTRIES = 1 << 24
_SEED = 0  # of the random start of the Krylov space
_BLOCKS = 10  # of that space
_MORE_COLUMNS = 8  # of each block than the rank asks for
_CREDENTIALED = "**Derived from credentialed data**: the data use agreement applies to this adapter too."
_NOTE = (
    "Difference: the share of the whole model's squared difference that lies in these tensors. Kept: the share of it"
    " that the adapter gives back, 1 - |D - scaling B A|² / |D|²."
)


@dataclasses.dataclass(frozen=True)
class _Target:
    """A tensor that goes into the adapter.

    Attributes:
      name: as the checkpoints have it.
      shape: likewise.
      rank: of its factors; 0 where the tensor is taken over whole.
      stored: name, dtype and shape of each tensor of the adapter, in the order of its file.
    """

    name: str
    shape: tuple[int, ...]
    rank: int
    stored: tuple[tuple[str, np.dtype, tuple[int, ...]], ...]

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in the adapter."""
        return sum(math.prod(shape) * dtype.itemsize for _, dtype, shape in self.stored)


def run(config: ConfigDict) -> None:
    """Extracts the adapter that the config describes: `config.model` minus `config.base`.

    Its fields: `model` (the fine-tuned checkpoint) and `base`; `rank` (0: as many as each matrix has, the difference
    itself up to rounding); `alpha` (0: as the rank, so that nothing is scaled); `dtype` of the factors ("": float32,
    whatever the models are in, because the product of factors rounded to bfloat16 is off by some thousandths);
    `modules` (a comma list: the matrices whose names hold one of these; embed_tokens and lm_head are taken over whole,
    in the model's own dtype); `output`, `overwrite`, `credentialed`.

    Raises:
      BadInput: the checkpoints do not belong together or do not differ, or a field is wrong.
    """
    model, base = (open_checkpoint(config[role], f"config.{role}") for role in ("model", "base"))
    check_compatible(base, model)
    if config.rank < 0:
        raise BadInput(f"config.rank: is {config.rank}; give a positive integer, or 0 for the full rank")
    if not 0 <= config.alpha < math.inf:
        raise BadInput(f"config.alpha: is {config.alpha}; give a positive number, or 0 for that of the rank")
    if config.dtype not in ("", *_DTYPES):
        raise BadInput(f"config.dtype: {config.dtype!r} is unknown; there are {', '.join(_DTYPES)}")
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
            print(f"{output.target} is finished already: same models, rank and modules, nothing to do.")
            print("To make it again: --config.overwrite=True. Its tables are in README.md there.")
            return
        if state is OutputState.RESUMED:
            logging.info("continuing the interrupted run in %s", output.partial)
        journal = _Journal(output)
        differences = _measure(model, base, journal)
        _refuse_equal(model, base, differences, wanted)
        changed = [name for name in wanted if differences[name]]
        targets = _plan(model, changed, config.rank, _DTYPES[config.dtype or "float32"])
        rank = max(target.rank for target in targets)
        alpha = config.alpha or rank
        alpha = int(alpha) if alpha == int(alpha) else alpha  # PEFT expects an integer, and takes other numbers
        _check_space(output, sum(target.nbytes for target in targets))
        left = _write_factors(model, base, targets, alpha / rank, journal, output)
        tables = _tables(model, targets, differences, left)
        total, covered = math.fsum(differences.values()), math.fsum(differences[name] for name in changed)
        kept = covered - math.fsum(left.values())
        output.write_text(CONFIG_FILE, _adapter_config(config.base, base, model, targets, rank, alpha))
        for path in model.carried_files():
            output.copy(path)
        for pattern in LICENCE_FILES:  # the base's terms hold too
            for path in sorted(base.path.glob(pattern)):
                output.copy(path, f"base.{path.name}")
        output.write_text("README.md", _card(output.target.name, model, base, rank, alpha, tables, credentialed))
        output.commit(
            {
                **provenance.environment(),
                "sha256": {"model": provenance.digests(model, {}), "base": provenance.digests(base, {})},
                "credentialed": credentialed,
                "rank": rank,
                "alpha": alpha,
                "kept_of_covered": kept / covered,
                "kept_of_all": kept / total,
                "squared_difference": differences,
                "squared_remainder": left,
            }
        )
    for heading, text in tables:
        print(f"\n{heading}\n{text}")
    size = tqdm.tqdm.format_sizeof(sum(target.nbytes for target in targets), "B")
    print(
        f"\nThe adapter is {output.target} ({size}, rank {rank}); it keeps {_share(kept / covered)} of the difference"
        f" of its tensors, {_share(kept / total)} of that of the whole model."
    )
    print(
        f"Next: name {config.base}+{output.target} as a model of a recipe (--config.recipe=FILE), or load it with PEFT:"
        f" PeftModel.from_pretrained(base, {str(output.target)!r});\nmore of the difference with a higher"
        " --config.rank or further --config.modules, into another --config.output."
    )


class _Journal:
    """What an interrupted run has measured and written, kept beside its files.

    Attributes:
      squares: sum of the squared difference, by tensor.
      left: sum of what the factors leave of it, by tensor whose factors are written and durable.
    """

    def __init__(self, output: OutputFolder):
        path = output.path(JOURNAL_FILE)
        content = json.loads(path.read_bytes()) if path.is_file() else {}
        self._output = output
        self.squares: dict[str, float] = content.get("squares", {})
        self.left: dict[str, float] = content.get("left", {})

    def save(self) -> None:
        """Makes it durable."""
        self._output.write_text(JOURNAL_FILE, json.dumps({"squares": self.squares, "left": self.left}))


def _matching(model: Checkpoint, filters: Sequence[str]) -> list[str]:
    """The matrices that the filters ask for, in the order of the files.

    Raises:
      BadInput: a filter fits no matrix, or one that cannot be taken over.
    """
    if not filters:
        raise BadInput("config.modules: is empty; give parts of names such as q_proj,v_proj")
    matrices = [name for name, entry in model.tensors.items() if name.endswith(".weight") and len(entry.shape) == 2]
    for text in filters:
        if any(text in name for name in matrices):
            continue
        if any(text in name for name in model.tensors):
            raise BadInput(f"config.modules: {text!r} fits no matrix, and LoRA holds nothing else; leave it out")
        raise BadInput(f"config.modules: {text!r} fits no tensor of {model.path}; leave it out or mend it")
    wanted = [name for name in matrices if any(text in name for text in filters)]
    shared = next((name for name in wanted if last_part(name) in EMBEDDINGS), None)
    if shared and is_tied(model):
        raise BadInput(
            f"config.modules: {shared} is shared between embedding and output (tie_word_embeddings), and an adapter"
            " would change one of them alone; leave it out"
        )
    return wanted


def _rows(entry: TensorEntry, first_row: int, rows: int, descriptor: int) -> np.ndarray:
    """Some rows of a tensor as a float32 matrix; a vector is one row."""
    columns = entry.shape[-1] if entry.shape else 1
    values = np.empty((rows, columns), entry.dtype)
    offset = entry.offset + first_row * columns * entry.dtype.itemsize
    read_into(descriptor, offset, memoryview(values.reshape(-1).view(np.uint8)), entry.file)
    return values.astype(np.float32)


def _square(values: np.ndarray) -> float:
    """The sum of the squares, in float64."""
    return float(np.sum(np.square(values, dtype=np.float64)))


def _measure(model: Checkpoint, base: Checkpoint, journal: _Journal) -> dict[str, float]:
    """The sum of the squared difference of every tensor, read in pieces.

    Raises:
      BadInput: a tensor holds values that are not finite.
    """
    total = sum(entry.size for entry in model.tensors.values())
    with tqdm.tqdm(total=total, desc="compare", unit_scale=True, mininterval=0.5, leave=False) as bar:
        for name, entry in model.tensors.items():
            if name not in journal.squares:
                with np.errstate(over="ignore", invalid="ignore"):  # it is refused below
                    square = math.fsum(_square(piece) for piece in _difference_pieces(entry, base.tensors[name]))
                if not math.isfinite(square):
                    raise BadInput(
                        f"{model.label}: tensor {name} of {model.path} or of {base.path} ({base.label}) holds values"
                        " that are not finite; give checkpoints without"
                    )
                journal.squares[name] = square
            bar.update(entry.size)
    journal.save()
    return {name: journal.squares[name] for name in model.tensors}


def _difference_pieces(one: TensorEntry, two: TensorEntry) -> Iterator[np.ndarray]:
    """The difference one - two as float32 matrices of consecutive rows."""
    if not one.size:
        return
    columns = one.shape[-1] if one.shape else 1
    rows, step = one.size // columns, max(1, _PIECE_ENTRIES // columns)
    descriptors = [os.open(entry.file, os.O_RDONLY) for entry in (one, two)]
    try:
        for row in range(0, rows, step):
            count = min(step, rows - row)
            yield _rows(one, row, count, descriptors[0]) - _rows(two, row, count, descriptors[1])
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _refuse_equal(model: Checkpoint, base: Checkpoint, differences: Mapping[str, float], wanted: Sequence[str]) -> None:
    if not any(differences.values()):
        raise BadInput(f"{model.label}: {model.path} holds the weights of {base.path} ({base.label}); nothing differs")
    if not any(differences[name] for name in wanted if last_part(name) not in EMBEDDINGS):
        modules = dict.fromkeys(module_of(name) for name, square in differences.items() if square)
        raise BadInput(
            f"config.modules: no matrix to factor among them differs; what differs is {', '.join(modules)}: name one of"
            " these that is a matrix, neither embed_tokens nor lm_head"
        )


def _plan(model: Checkpoint, names: Sequence[str], rank: int, dtype: np.dtype) -> list[_Target]:
    targets = []
    for name in names:
        entry, module = model.tensors[name], PREFIX + name.removesuffix(".weight")
        if last_part(name) in EMBEDDINGS:
            targets.append(_Target(name, entry.shape, 0, ((f"{module}.weight", entry.dtype, entry.shape),)))
            continue
        most = min(entry.shape)
        its_rank = min(rank, most) if rank else most
        rows, columns = entry.shape
        stored = (
            (f"{module}.lora_A.weight", dtype, (its_rank, columns)),
            (f"{module}.lora_B.weight", dtype, (rows, its_rank)),
        )
        targets.append(_Target(name, entry.shape, its_rank, stored))
    return targets


def _check_space(output: OutputFolder, nbytes: int) -> None:
    begun = output.path(WEIGHTS_FILE + ".part")
    free = shutil.disk_usage(output.partial).free + (begun.stat().st_blocks * 512 if begun.is_file() else 0)
    if free < nbytes:
        need, have = (tqdm.tqdm.format_sizeof(count, "B") for count in (nbytes, free))
        raise BadInput(
            f"config.output: the adapter takes {need} and {output.target.parent} has {have} free; free some, name a"
            " folder elsewhere or give a lower rank"
        )


def factor(d_OI: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Two factors of a given rank whose product is nearest to a matrix in the sum of squares.

    Where the rank is small beside the shorter side, the leading singular vectors are sought in a block Krylov space
    from a random start with a fixed seed (Musco and Musco 2015, arXiv 1504.05477, algorithm 2), which takes a fraction
    of the time; of random noise, whose singular values hardly fall, it keeps all but some ten-thousandths of what the
    best factors keep. Otherwise the factors are cut from the whole singular value decomposition.

    Args:
      d_OI: float32.
      rank: from 1 to the shorter side.

    Returns:
      A (R, I) and B (O, R) in float32; each takes the root of the singular values.
    """
    width = rank + _MORE_COLUMNS
    if 2 * _BLOCKS * width > min(d_OI.shape):
        u_OR, s_R, v_RI = np.linalg.svd(d_OI, full_matrices=False)
    else:
        start = np.random.default_rng(_SEED).standard_normal((d_OI.shape[1], width), dtype=np.float32)
        basis = block = np.linalg.qr(d_OI @ start).Q
        for _ in range(_BLOCKS - 1):
            block = d_OI @ (d_OI.T @ block)
            block -= basis @ (basis.T @ block)
            basis = np.concatenate([basis, np.linalg.qr(block).Q], axis=1)
            block = basis[:, -width:]
        basis = np.linalg.qr(basis).Q  # blocks that hold rounding alone are not at right angles to the others
        u_OR, s_R, v_RI = np.linalg.svd(basis.T @ d_OI, full_matrices=False)
        u_OR = basis @ u_OR[:, :rank]
    root_R = np.sqrt(s_R[:rank])
    return root_R[:, None] * v_RI[:rank], u_OR[:, :rank] * root_R


def _write_factors(
    model: Checkpoint,
    base: Checkpoint,
    targets: Sequence[_Target],
    scaling: float,
    journal: _Journal,
    output: OutputFolder,
) -> dict[str, float]:
    """Writes the weight file, tensor by tensor at its place; returns what is left of each squared difference.

    Raises:
      BadInput: a factor does not fit its dtype.
    """
    header = header_bytes(stored for target in targets for stored in target.stored)
    temporary, finished = output.path(WEIGHTS_FILE + ".part"), output.path(WEIGHTS_FILE)
    if not temporary.exists() and not finished.exists():
        journal.left.clear()
    total = sum(math.prod(target.shape) for target in targets)
    bar = tqdm.tqdm(total=total, desc="factor", unit_scale=True, mininterval=0.5, leave=False)
    path = finished if finished.exists() else temporary
    with bar, open(os.open(path, os.O_CREAT | os.O_RDWR, 0o644), "r+b") as file:
        file.write(header)
        position = len(header)
        for target in targets:
            if target.name not in journal.left:
                file.seek(position)
                values, left = _values(model.tensors[target.name], base.tensors[target.name], target, scaling)
                for value in values:
                    file.write(memoryview(value.reshape(-1).view(np.uint8)))
                file.flush()
                os.fsync(file.fileno())  # the journal must not name what a power cut could take back
                journal.left[target.name] = left
                journal.save()
            position += target.nbytes
            bar.update(math.prod(target.shape))
        file.truncate(position)
    path.rename(finished)
    sync(output.partial)
    return {target.name: journal.left[target.name] for target in targets}


def _values(one: TensorEntry, two: TensorEntry, target: _Target, scaling: float) -> tuple[list[np.ndarray], float]:
    """What the adapter stores of a tensor, and the sum of the squares that it leaves of the difference."""
    if not target.rank:
        return [read_tensor(one)], 0.0
    d_OI = np.empty(target.shape, np.float32)
    row = 0
    for piece in _difference_pieces(one, two):
        d_OI[row : row + len(piece)] = piece
        row += len(piece)
    stored = []
    for values, (name, dtype, _) in zip(factor(d_OI, target.rank), target.stored, strict=True):
        with np.errstate(over="ignore"):  # it is refused below
            values = np.ascontiguousarray(values / np.float32(math.sqrt(scaling))).astype(dtype)
        if not np.isfinite(values).all():
            raise BadInput(f"config.dtype: {name} does not fit {dtype}; give float32")
        stored.append(values)
    a_RI, b_OR = (values.astype(np.float32) for values in stored)
    step = max(1, _PIECE_ENTRIES // d_OI.shape[1])
    pieces = (slice(row, row + step) for row in range(0, len(d_OI), step))
    return stored, math.fsum(_square(d_OI[piece] - np.float32(scaling) * (b_OR[piece] @ a_RI)) for piece in pieces)


def _adapter_config(
    location: str, base: Checkpoint, model: Checkpoint, targets: Sequence[_Target], rank: int, alpha: float
) -> str:
    """The text of adapter_config.json.

    PEFT expects factors for every module that target_modules fits. So a short name such as q_proj stands there only
    where all modules that end in it are in the adapter; of others, whose difference may be nothing in some layers, the
    whole names do.
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
            short = module_of(module)
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
        "lora_dropout": 0.0,
        "modules_to_save": [last_part(target.name) for target in targets if not target.rank] or None,
        "peft_type": "LORA",
        "r": rank,
        # Every module is scaled alike, by alpha / r.
        "alpha_pattern": {name: alpha * its_rank / rank for name, its_rank in ranks.items()},
        "rank_pattern": ranks,
        "revision": revision or None,
        "target_modules": names,
        "task_type": "CAUSAL_LM",
        "use_rslora": False,
    }
    return json.dumps(content, indent=1) + "\n"


def _share(value: float) -> str:
    return f"{value:.4%}"


def _tables(
    model: Checkpoint, targets: Sequence[_Target], differences: Mapping[str, float], left: Mapping[str, float]
) -> list[tuple[str, str]]:
    total = math.fsum(differences.values())
    groups: dict[str, list[_Target]] = {}
    for target in targets:
        groups.setdefault(module_of(target.name), []).append(target)
    rows = []
    for module, group in [*groups.items(), ("all", list(targets))]:
        square = math.fsum(differences[target.name] for target in group)
        kept = [1 - left[target.name] / differences[target.name] for target in group]
        ranks = sorted({target.rank for target in group if target.rank})
        rows.append(
            [
                module,
                str(len(group)),
                "whole" if not ranks else str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}",
                _share(square / total),
                _share(1 - math.fsum(left[target.name] for target in group) / square),
                _share(min(kept)),
            ]
        )
    tables = [
        (
            "What the adapter keeps",
            table(["module", "tensors", "rank", "difference", "kept", "least kept of a tensor"], rows) + f"\n\n{_NOTE}",
        )
    ]
    inside = {target.name for target in targets}
    outside: dict[str, list[str]] = {}
    for name in model.tensors:
        if differences[name] and name not in inside:
            outside.setdefault(module_of(name), []).append(name)
    if outside:
        rows = [
            [module, str(len(names)), _share(math.fsum(differences[name] for name in names) / total)]
            for module, names in outside.items()
        ]
        tables.append(("What differs and is not in the adapter", table(["module", "tensors", "difference"], rows)))
    return tables


def _card(
    title: str,
    model: Checkpoint,
    base: Checkpoint,
    rank: int,
    alpha: float,
    tables: Sequence[tuple[str, str]],
    credentialed: bool,
) -> str:
    parents = {"base": base.path, "fine-tuned model": model.path}
    licences = {role: front_matter(folder).get("license") for role, folder in parents.items()}
    stated = sorted({str(licence) for licence in licences.values() if licence})
    head: dict[str, Any] = {"base_model": base.path.name, "library_name": "peft", "tags": ["lora", "clinmerge_jax"]}
    if stated:
        head["license"] = stated[0] if len(stated) == 1 else "other"
    lines = ["---", yaml.safe_dump(head, sort_keys=False).strip(), "---", f"# {title}", ""]
    lines.append(f"The difference of two models as a LoRA adapter of rank {rank} (alpha {alpha:g}), by clinmerge_jax.")
    lines.append("")
    for role, folder in parents.items():
        licence = licences[role] or "not stated in its card: check before use"
        lines.append(f"* {role}: {folder.name}, licence {licence}")
    lines += ["", "The adapter inherits the terms of both."]
    if credentialed:
        lines += ["", _CREDENTIALED]
    for heading, text in tables:
        lines += ["", f"## {heading}", "", text]
    return "\n".join(lines) + "\n"
