"""Benchmarks writing random weights as an Orbax folder and restoring it onto a mesh, from a cold page cache.

Both run as separate processes whose peak memory is measured. The floors are plain file operations on the same bytes in
the same repeat: for writing, read the files, then write and sync as many bytes; for restoring, read the files.
"""

import json
import pathlib
import sys
import tempfile

from absl import logging
from ml_collections import ConfigDict

from clinmerge_jax.benchmark.load import transfer
from clinmerge_jax.benchmark.measuring import measure
from clinmerge_jax.benchmark.measuring.checkpoints import make_checkpoint
from clinmerge_jax.checkpoint.parameters.orbax_folder import params_files
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.parameters import count_parameters

_ROOT = pathlib.Path(__file__).parents[2]


def run(config: ConfigDict) -> None:
    """Runs the benchmark; see configs/benchmark.py for its fields."""
    llama = LlamaConfig.from_json(config.model.to_dict(), "config.model")
    nbytes = 2 * count_parameters(llama)
    measure.check_counts(config, "repeats")
    place = measure.place_with_space(config.output, 2.1 * nbytes)
    measured: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="orbax-", dir=place) as temporary:
        work = pathlib.Path(temporary)
        source, saved = work / "source", work / "saved"
        logging.info("making %s: %.2fe9 parameters, %.1f GB", source, nbytes / 2e9, nbytes / 1e9)
        make_checkpoint(source, config.model.to_dict(), llama, 0.0)
        files = sorted(source.glob("*.safetensors"))
        command = [sys.executable, "-m", "clinmerge_jax.main", f"--config={_ROOT / 'configs' / 'convert.py'}"]
        command += ["--config.format=orbax"]
        command += [f"--config.source={source}", f"--config.output={saved}", "--config.overwrite=True"]
        for repeat in range(config.repeats):
            measure.drop_cache(files)
            floor = measure.plain_copies(files, nbytes, work / "floor.bin")
            measure.drop_cache(files)
            converted = measure.watch(command)
            measure.drop_cache(params_files(saved))
            restored = transfer(config, source, saved, work / "times.json", "--restore")
            for name, record in (
                ("floor: read, write and sync", {"seconds": floor["seconds"]}),
                ("Hugging Face to Orbax", converted),
                ("floor: read the files", {"seconds": floor["read_seconds"]}),
                ("restore onto the devices", {"seconds": restored["seconds"], "peak_bytes": restored["peak_bytes"]}),
            ):
                measured.setdefault(name, []).append(record)
                logging.info("repeat %d, %s: %s", repeat + 1, name, record)
    measure.record(place / "orbax.json", measured, bytes=nbytes, mesh=restored["mesh"])
    names = list(measured)
    print(measure.ratios_table(measured, dict(zip(names, [names[0], names[0], names[2], names[2]])), "step"))
    print(
        f"{config.repeats} repeats, page cache of the files dropped before each; {nbytes / 1e9:.2f} GB restored on mesh"
        f" {json.dumps(restored['mesh'])}; every shard of it equals its part of the checkpoint byte for byte. The"
        " conversion is a whole process, which digests its input too. Peak: resident memory, which holds the model."
    )
    print(f"\nThe figures of every run are in {place / 'orbax.json'}.")
