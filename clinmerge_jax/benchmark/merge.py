"""Benchmarks merges of random weights as whole processes, from a cold page cache, with one recipe for each method.

The floor is plain file operations on the same bytes: read all inputs, then write and sync as many bytes as the result
has. The peer is mergekit, with the same recipe.
"""

import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import yaml
from absl import logging
from ml_collections import ConfigDict

from clinmerge_jax.benchmark.measuring import measure
from clinmerge_jax.benchmark.measuring.checkpoints import make_checkpoint
from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.parameters import count_parameters
from clinmerge_jax.merging.methods import METHODS, Base

_ROOT = pathlib.Path(__file__).parents[2]
_PEER_RUNNER = _ROOT / "third_party" / "peers" / "merge_with_mergekit.py"
# Values in the recipes of the parameters that a method has; all others keep their defaults.
_PARAMETERS = {
    "weight": 0.5, "density": 0.5, "gamma": 0.01, "epsilon": 0.1, "select_topk": 0.1, "t": 0.5,
}  # fmt: skip
_OF_ITS_OWN = {"nearswap": {"t": 0.001}, "ram": {"epsilon": 1e-5}, "ramplus_tl": {"epsilon": 1e-5}}


def run(config: ConfigDict) -> None:
    """Runs the benchmark; see configs/benchmark.py for its fields."""
    llama = LlamaConfig.from_json(config.model.to_dict(), "config.model")
    nbytes = 2 * count_parameters(llama)
    check_methods(config.methods)
    measure.check_counts(config, "repeats")
    place = measure.place_with_space(config.output, 4.2 * nbytes)
    measured: dict[str, list[dict[str, float]]] = {}
    floors: dict[str, str] = {}
    # In a separate folder, so that the benchmark removes only what it made.
    with tempfile.TemporaryDirectory(prefix="merge-", dir=place) as temporary:
        work = pathlib.Path(temporary)
        models = {name: work / name for name in ("instruct", "clinical", "base")}
        used = {name for method in config.methods for name in models_of(method)}
        for seed, name in enumerate(models):
            if name in used:
                logging.info("making %s: %.2fe9 parameters, %.1f GB", name, nbytes / 2e9, nbytes / 1e9)
                drift = 0.0 if name == "base" else config.drift
                make_checkpoint(models[name], config.model.to_dict(), llama, drift, seed)
        files = {name: sorted(folder.glob("*.safetensors")) for name, folder in models.items()}
        for repeat in range(config.repeats):
            for name, floor, job in _jobs(config, models, files, nbytes, work):
                measure.drop_cache([path for paths in files.values() for path in paths])
                measured.setdefault(name, []).append(job())
                floors[name] = floor
                logging.info("repeat %d, %s: %s", repeat + 1, name, measured[name][-1])
    measure.record(place / "merge.json", measured, bytes=nbytes)
    print(measure.ratios_table(measured, floors, "whole process"))
    print(
        f"{config.repeats} repeats, page cache of the inputs dropped before each run; inputs of {nbytes / 1e9:.2f} GB"
        " each, one result. Floor: read all inputs, then write and sync the result's bytes, one after the other."
    )
    print(f"\nThe figures of every run are in {place / 'merge.json'}.")


def check_methods(methods: Sequence[str], known: Sequence[str] = tuple(METHODS)) -> None:
    """Refuses an empty list of methods or an unknown one.

    Raises:
      BadInput: `config.methods` is empty or has an unknown method.
    """
    if not methods or any(method not in known for method in methods):
        raise BadInput(f"config.methods: {methods}; give one or more of {', '.join(known)}")


def models_of(method: str) -> list[str]:
    """The models among instruct, clinical and base that a method's recipe merges."""
    count = METHODS[method].models[1]
    return [*("instruct", "clinical")[:count], *["base"] * (METHODS[method].base is Base.REQUIRED)]


def recipe_of(method: str, models: Mapping[str, pathlib.Path]) -> dict[str, Any]:
    """A method's recipe, which ours and the peer run."""
    first, *others = (str(models[name].resolve()) for name in models_of(method) if name != "base")
    values = {**_PARAMETERS, **_OF_ITS_OWN.get(method, {})}
    known = {**METHODS[method].parameters, **METHODS[method].source_parameters}
    recipe: dict[str, Any] = {"merge_method": method, "dtype": "bfloat16"}
    if METHODS[method].base is Base.REQUIRED:
        recipe["base_model"] = str(models["base"].resolve())
    elif METHODS[method].base is Base.FIRST:
        recipe["base_model"] = first
    parameters = {name: value for name, value in values.items() if name in known}
    own = {name: parameters.pop(name) for name in list(parameters) if name in METHODS[method].source_parameters}
    given = {"parameters": own} if own else {}
    recipe["models"] = [{"model": model, **given} for model in (first, *others)]
    return {**recipe, "parameters": parameters} if parameters else recipe


def _jobs(
    config: ConfigDict,
    models: Mapping[str, pathlib.Path],
    files: Mapping[str, Sequence[pathlib.Path]],
    nbytes: int,
    work: pathlib.Path,
) -> Iterator[tuple[str, str, Callable[[], dict[str, float]]]]:
    """Yields what one repeat measures as (name, name of its floor, function that runs it); floors come first."""
    floor_of = {method: f"floor of {len(models_of(method))}" for method in config.methods}
    for method in {floor: method for method, floor in reversed(floor_of.items())}.values():
        inputs = [path for name in models_of(method) for path in files[name]]
        floor = floor_of[method]
        yield floor, floor, lambda inputs=inputs: measure.plain_copies(inputs, nbytes, work / "floor.bin")
    for method, floor in floor_of.items():
        path = work / f"{method}.yml"
        path.write_text(yaml.safe_dump(recipe_of(method, models)))
        ours = [
            sys.executable, "-m", "clinmerge_jax.main", f"--config={_ROOT / 'configs' / 'merge.py'}",
            f"--config.recipe={path}", f"--config.output={work / 'merged'}", "--config.evaluate=",
        ]  # fmt: skip
        yield f"clinmerge_jax {method}", floor, lambda command=ours: _run(command, work / "merged")
        if config.peer_python:
            peer = [config.peer_python, str(_PEER_RUNNER), str(path), str(work / "peer")]
            yield f"mergekit {method}", floor, lambda command=peer: _run(command, work / "peer")


def _run(command: Sequence[str], output: pathlib.Path) -> dict[str, float]:
    measured = measure.watch(command)
    shutil.rmtree(output)
    return measured
