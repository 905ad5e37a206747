"""Merges two checkpoints of random weights from a cold page cache, as whole processes.

The floor is what plain file operations take for the same bytes: read both inputs, then write and sync as many bytes as
the result has. The peer is mergekit.
"""

import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import yaml
from absl import logging
from ml_collections import ConfigDict

from clinmerge_jax.benchmark import measure
from clinmerge_jax.benchmark.checkpoints import make_checkpoint
from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.parameters import count_parameters

_ROOT = pathlib.Path(__file__).parents[2]
_PEER_RUNNER = _ROOT / "third_party" / "peers" / "merge_with_mergekit.py"
METHODS = ("linear", "slerp")


def run(config: ConfigDict) -> None:
    """Runs the benchmark; see configs/benchmark.py for its fields."""
    llama = LlamaConfig.from_json(config.model.to_dict(), "config.model")
    nbytes = 2 * count_parameters(llama)
    check_methods(config.methods)
    measure.check_repeats(config.repeats)
    place = measure.place_with_space(config.output, 3.2 * nbytes)
    measured: dict[str, list[dict[str, float]]] = {}
    # A folder of its own: what the benchmark removes is only what it made.
    with tempfile.TemporaryDirectory(prefix="merge-", dir=place) as temporary:
        work = pathlib.Path(temporary)
        folders = [work / "instruct", work / "clinical"]
        for seed, folder in enumerate(folders):
            logging.info("making %s: %.2fe9 parameters, %.1f GB", folder, nbytes / 2e9, nbytes / 1e9)
            make_checkpoint(folder, config.model.to_dict(), llama, seed * config.drift)
        inputs = [path for folder in folders for path in sorted(folder.glob("*.safetensors"))]
        for repeat in range(config.repeats):
            for name, job in _jobs(config, folders, inputs, nbytes, work):
                measure.drop_cache(inputs)
                measured.setdefault(name, []).append(job())
                logging.info("repeat %d, %s: %s", repeat + 1, name, measured[name][-1])
    measure.record(place / "merge.json", measured, bytes=nbytes)
    print(measure.ratios_table(measured, dict.fromkeys(measured, "floor"), "whole process"))
    print(
        f"{config.repeats} repeats, page cache of the inputs dropped before each run; two inputs of {nbytes / 1e9:.2f}"
        " GB, one result. Floor: read both inputs, then write and sync the result's bytes, one after the other."
    )
    print(f"\nThe figures of every run are in {place / 'merge.json'}.")


def check_methods(methods: Sequence[str]) -> None:
    """Refuses what cannot be measured.

    Raises:
      BadInput: naming the field.
    """
    if not methods or any(method not in METHODS for method in methods):
        raise BadInput(f"config.methods: {methods}; give one or more of {METHODS}")


def _jobs(
    config: ConfigDict, folders: Sequence[pathlib.Path], inputs: Sequence[pathlib.Path], nbytes: int, work: pathlib.Path
) -> Iterator[tuple[str, Callable[[], dict[str, float]]]]:
    """What one repeat measures, the floor first."""
    yield "floor", lambda: measure.plain_copies(inputs, nbytes, work / "floor.bin")
    for method in config.methods:
        yield f"clinmerge_jax {method}", lambda method=method: _run_ours(method, folders, work / "merged")
        if config.peer_python:
            yield f"mergekit {method}", lambda method=method: _run_peer(config.peer_python, method, folders, work)


def _run_ours(method: str, folders: Sequence[pathlib.Path], output: pathlib.Path) -> dict[str, float]:
    command = [
        sys.executable, "-m", "clinmerge_jax.main", f"--config={_ROOT / 'configs' / 'merge.py'}:{method}",
        f"--config.instruct={folders[0]}", f"--config.clinical={folders[1]}", "--config.base=",
        f"--config.output={output}", "--config.evaluate=",
    ]  # fmt: skip
    measured = measure.watch(command)
    shutil.rmtree(output)
    return measured


def _run_peer(python: str, method: str, folders: Sequence[pathlib.Path], work: pathlib.Path) -> dict[str, float]:
    models: list[dict[str, Any]] = [{"model": str(folder.resolve())} for folder in folders]
    recipe: dict[str, Any] = {"merge_method": method, "models": models, "dtype": "bfloat16"}
    if method == "slerp":
        recipe |= {"base_model": models[0]["model"], "parameters": {"t": 0.5}}
    else:
        for model in models:
            model["parameters"] = {"weight": 0.5}
    path, output = work / "peer.yml", work / "peer"
    path.write_text(yaml.safe_dump(recipe))
    measured = measure.watch([python, str(_PEER_RUNNER), str(path), str(output)])
    shutil.rmtree(output)
    return measured
