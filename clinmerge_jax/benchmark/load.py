"""Benchmarks loading a checkpoint of random weights onto the devices and saving it, from a cold page cache.

Loading and saving run in a separate process, which reports its peak memory. The floors are plain file operations on the
same bytes in the same repeat: read the files; write and sync as many bytes.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

from absl import logging
from ml_collections import ConfigDict

from clinmerge_jax.benchmark.measuring import measure
from clinmerge_jax.benchmark.measuring.checkpoints import make_checkpoint
from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.formats.safetensors import TensorEntry, read_into
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.parameters import count_parameters

_CHUNK = 16 << 20


def run(config: ConfigDict) -> None:
    """Runs the benchmark; see configs/benchmark.py for its fields."""
    llama = LlamaConfig.from_json(config.model.to_dict(), "config.model")
    nbytes = 2 * count_parameters(llama)
    measure.check_counts(config, "repeats")
    place = measure.place_with_space(config.output, 3.1 * nbytes)
    measured: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="load-", dir=place) as temporary:
        work = pathlib.Path(temporary)
        source, saved = work / "source", work / "saved"
        logging.info("making %s: %.2fe9 parameters, %.1f GB", source, nbytes / 2e9, nbytes / 1e9)
        make_checkpoint(source, config.model.to_dict(), llama, 0.0)
        files = sorted(source.glob("*.safetensors"))
        for repeat in range(config.repeats):
            measure.drop_cache(files)
            floor = measure.plain_copies(files, nbytes, work / "floor.bin")
            measure.drop_cache(files)
            ours = transfer(config, source, saved, work / "times.json")
            check_same_tensors(source, saved)
            for path in [*saved.iterdir()]:
                path.unlink()
            saved.rmdir()
            for name, record in (
                ("floor: read the files", {"seconds": floor["read_seconds"]}),
                ("load onto the devices", {"seconds": ours["load_seconds"], "peak_bytes": ours["load_peak_bytes"]}),
                ("floor: write and sync", {"seconds": floor["write_seconds"]}),
                ("save from the devices", {"seconds": ours["save_seconds"], "peak_bytes": ours["peak_bytes"]}),
            ):
                measured.setdefault(name, []).append(record)
                logging.info("repeat %d, %s: %s", repeat + 1, name, record)
    measure.record(place / "load.json", measured, bytes=nbytes, mesh=ours["mesh"])
    names = list(measured)
    print(measure.ratios_table(measured, dict(zip(names, [names[0], names[0], names[2], names[2]])), "step"))
    print(
        f"{config.repeats} repeats, page cache of the files dropped before each; {nbytes / 1e9:.2f} GB on mesh"
        f" {ours['mesh']}; every tensor of the saved checkpoint equals its original byte for byte. Peak: resident"
        " memory of the process, which on CPUs holds the model itself."
    )
    print(f"\nThe figures of every run are in {place / 'load.json'}.")


def transfer(config: ConfigDict, source: pathlib.Path, saved: pathlib.Path, times: pathlib.Path, *more: str) -> dict:
    """Runs `benchmark/measuring/transfer.py` as a process; returns the times that it wrote."""
    shape = {f"--{axis}": str(size) for axis, size in config.mesh.items()}
    words = [word for pair in shape.items() for word in pair]
    command = [
        sys.executable,
        "-m",
        "clinmerge_jax.benchmark.measuring.transfer",
        str(source),
        str(saved),
        str(times),
        *words,
    ]
    command += more
    environment = dict(os.environ)
    if config.cpu_devices:
        environment |= {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(config.cpu_devices)}
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{process.stderr[-2000:]}")
    return json.loads(times.read_bytes())


def check_same_tensors(one: pathlib.Path, two: pathlib.Path) -> None:
    """Raises RuntimeError if two checkpoints differ in any byte of a tensor."""
    left, right = (open_checkpoint(str(path), "config.model").tensors for path in (one, two))
    if left.keys() != right.keys():
        raise RuntimeError(f"{two} does not hold the same tensors as {one}")
    for name, entry in left.items():
        other = right[name]
        if (entry.shape, entry.dtype) != (other.shape, other.dtype) or not _same_bytes(entry, other):
            raise RuntimeError(f"tensor {name} of {two} differs from {one}'s")


def _same_bytes(one: TensorEntry, two: TensorEntry) -> bool:
    with one.file.open("rb") as first, two.file.open("rb") as second:
        for start in range(0, one.nbytes, _CHUNK):
            buffers = [bytearray(min(_CHUNK, one.nbytes - start)) for _ in range(2)]
            for file, entry, buffer in ((first, one, buffers[0]), (second, two, buffers[1])):
                read_into(file.fileno(), entry.offset + start, memoryview(buffer), entry.file)
            if buffers[0] != buffers[1]:
                return False
    return True
