"""The process that `benchmark/load.py` watches: loads a checkpoint onto a mesh, saves it, and notes time and memory.

python -m clinmerge_jax.benchmark.transfer SOURCE TARGET TIMES.json --data 0 --fsdp 0 --tensor 0
"""

import argparse
import json
import pathlib
import resource
import time

import jax

from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.output import OutputFolder
from clinmerge_jax.checkpoint.params import llama_config, load_params, write_weights
from clinmerge_jax.checkpoint.weight_files import index_json
from clinmerge_jax.parallel.layout import make_layout
from clinmerge_jax.parallel.mesh import MeshShape


def main() -> None:
    """Transfers; the times leave out the start of the process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("times", type=pathlib.Path)
    for axis in ("data", "fsdp", "tensor"):
        parser.add_argument(f"--{axis}", type=int, default=0)
    given = parser.parse_args()
    checkpoint = open_checkpoint(given.source, "source")
    layout = make_layout(llama_config(checkpoint), MeshShape(given.data, given.fsdp, given.tensor))
    times = {"mesh": dict(layout.mesh.shape)}
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


def _peak() -> int:
    """Bytes: the most that was resident at a time."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
