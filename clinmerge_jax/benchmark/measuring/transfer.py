"""Subprocess of `benchmark/load.py` and `benchmark/orbax.py`: transfers a checkpoint, measures time and memory.

python -m clinmerge_jax.benchmark.measuring.transfer SOURCE TARGET TIMES.json --data 0 --fsdp 0 --tensor 0 [--restore]

Loads a checkpoint onto a mesh and saves it to TARGET. With --restore, TARGET is an Orbax folder made from SOURCE: it is
restored onto the mesh and compared with SOURCE.
"""

import argparse
import json
import pathlib
import resource
import time

import jax
import numpy as np

from clinmerge_jax.checkpoint.folder import Checkpoint, open_checkpoint
from clinmerge_jax.checkpoint.formats.safetensors import read_tensor
from clinmerge_jax.checkpoint.output import OutputFolder
from clinmerge_jax.checkpoint.parameters.orbax_folder import load_orbax
from clinmerge_jax.checkpoint.parameters.params import llama_config, load_params, write_weights
from clinmerge_jax.checkpoint.parameters.weight_files import index_json
from clinmerge_jax.llama.parameters import iterate_params
from clinmerge_jax.parallel.layout import Layout, make_layout
from clinmerge_jax.parallel.mesh import MeshShape


def main() -> None:
    """Transfers the checkpoint and writes the times, which exclude the start-up of the process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("times", type=pathlib.Path)
    for axis in ("data", "fsdp", "tensor"):
        parser.add_argument(f"--{axis}", type=int, default=0)
    parser.add_argument("--restore", action="store_true")
    given = parser.parse_args()
    checkpoint = open_checkpoint(given.source, "source")
    layout = make_layout(llama_config(checkpoint), MeshShape(given.data, given.fsdp, given.tensor))
    times = {"mesh": dict(layout.mesh.shape)}
    if given.restore:
        times |= _restore(checkpoint, pathlib.Path(given.target), layout)
        given.times.write_text(json.dumps(times))
        return
    start = time.perf_counter()
    _, params = load_params(checkpoint, mesh=layout.mesh)
    jax.block_until_ready(params)
    times["load_seconds"] = time.perf_counter() - start
    times["load_peak_bytes"] = _peak()
    files: dict[str, list[str]] = {}
    for name, entry in checkpoint.tensors.items():
        files.setdefault(entry.file.name, []).append(name)
    start = time.perf_counter()
    with OutputFolder(given.target, {}) as output:
        output.open()
        write_weights(params, layout, files, output)
        index = index_json(files, checkpoint.nbytes)
        if index:
            output.write_text("model.safetensors.index.json", index)
        output.write_text("config.json", json.dumps(dict(checkpoint.config)))
        output.commit({})
    times["save_seconds"] = time.perf_counter() - start
    times["peak_bytes"] = _peak()
    given.times.write_text(json.dumps(times))


def _restore(checkpoint: Checkpoint, folder: pathlib.Path, layout: Layout) -> dict[str, float]:
    """Restores an Orbax folder; raises RuntimeError if a shard's bytes differ from the checkpoint's."""
    start = time.perf_counter()
    config, params = load_orbax(folder, mesh=layout.mesh)
    jax.block_until_ready(params)
    measured = {"seconds": time.perf_counter() - start, "peak_bytes": _peak()}
    for row, leaf in iterate_params(params, config):
        for layer, name in enumerate(row.names(config)):
            whole = read_tensor(checkpoint.tensors[name]).view(np.uint16)
            for shard in leaf.addressable_shards:
                part = np.asarray(shard.data).view(np.uint16)
                # Rows past the end are padding; whole[index] leaves them out.
                expected = whole[shard.index[row.stacked :]]
                part = part[layer] if row.stacked else part
                if not np.array_equal(part[: len(expected)], expected):
                    raise RuntimeError(f"{folder}: {name} differs from {checkpoint.path}'s on {shard.device}")
    return measured


def _peak() -> int:
    """Peak resident memory of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
