"""Every part imports on a machine that lacks what it lacks, touches no device before its turn, and fits the card."""

import subprocess
import sys

from clinmerge_jax.benchmark.gpu_check.parts import PARTS, part_named
from clinmerge_jax.llama.cache import cache_bytes
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.parameters import count_parameters

# What such a machine has not and nobody carries there.
MISSING = (
    "datasets", "langdetect", "lm_eval", "ml_collections", "nltk", "openpyxl", "pyarrow", "rouge_score", "sacrebleu",
    "tensorboardX", "tensorflow", "tensorflow_datasets",
)  # fmt: skip
CARD = 80.0

IMPORTS = """
import importlib, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
for name in sys.argv[2:]:
    importlib.import_module(f"clinmerge_jax.benchmark.gpu_check.{name}")
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized(), "an import took a device"
import torch
assert not torch.cuda.is_initialized()
"""


def test_parts_import_without_what_the_machine_lacks_and_take_no_device(repository):
    modules = sorted({part.function.partition(":")[0] for part in PARTS})
    command = [sys.executable, "-c", IMPORTS, ",".join(MISSING), *modules]
    process = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


def test_every_part_fits_the_card():
    assert all(part.gigabytes < 0.96 * CARD for part in PARTS)
    llama = LlamaConfig.from_json(part_named("decode").settings["model"], "model")
    weights = 2 * count_parameters(llama)
    assert 3 * weights < 1e9 * part_named("merge").gigabytes
    for name in ("decode", "prompts"):
        settings = part_named(name).settings
        slots, tokens = (
            max(settings.get("batches", (settings.get("batch"),))),
            settings["prompt"] + settings.get("new", 1),
        )
        assert 2 * weights + cache_bytes(llama, slots, tokens, "bfloat16") < 1e9 * part_named(name).gigabytes


def test_a_rehearsal_replaces_settings_that_there_are():
    assert all(set(part.rehearsal) <= set(part.settings) for part in PARTS)
