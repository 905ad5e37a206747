"""Full fine-tuning of Llama-3.1 compiles ahead of time for TPU pods and fits them; needs the tpu extra, no TPU."""

import dataclasses
import importlib.util
import re

import jax
import pytest
from support import LLAMA_3_1_8B, LLAMA_3_1_70B, tpu_devices

from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.model import Remat
from clinmerge_jax.parallel.layout import Layout
from clinmerge_jax.parallel.mesh import MeshShape, build_mesh
from clinmerge_jax.training.ahead_of_time import lower_step
from clinmerge_jax.training.optimizer import OptimizerSettings
from clinmerge_jax.training.step import StepSettings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed; pip install clinmerge_jax[tpu]"
    ),
]

LENGTH = 4096
SETTINGS = StepSettings(OptimizerSettings(), 100, remat=Remat.FULL)  # bfloat16 from float32 weights and moments


@dataclasses.dataclass(frozen=True)
class Case:
    """A model on a pod: its mesh, rows of a batch, and bytes of one chip."""

    name: str
    config: LlamaConfig
    topology: str
    kind: str
    mesh: MeshShape
    rows: int
    chip_bytes: int


# Slices of the hidden size of at least 128 columns: XLA gathers narrower ones by an all-reduce, at twice the bytes.
CASES = (
    Case("8B", LLAMA_3_1_8B, "v5p:2x2x4", "v5p-32", MeshShape(1, 16, 1), 16, 95 * 10**9),
    Case("8B", LLAMA_3_1_8B, "v6e:4x4", "v6e-16", MeshShape(1, 16, 1), 16, 32 * 10**9),
    Case("70B", LLAMA_3_1_70B, "v5p:4x4x8", "v5p-256", MeshShape(1, 32, 4), 64, 95 * 10**9),
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}-{case.topology}")
def test_a_full_step_fits(case, figures):
    with pytest.MonkeyPatch.context() as patch:
        devices = tpu_devices(patch, case.topology, case.kind)
        layout = Layout(build_mesh(case.mesh, devices), case.config)
        compiled = lower_step(layout, SETTINGS, (1, case.rows, LENGTH)).compile()
    memory = compiled.memory_analysis()
    argument, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    figures.append(
        f"full fine-tuning of {case.name}, {case.rows} x {LENGTH} tokens, {case.topology}, {case.mesh}: argument"
        f" {argument / 1e9:.3f}, temporary {temporary / 1e9:.3f} GB of {case.chip_bytes / 1e9:.0f} a device"
    )
    weights = sum(leaf.size for leaf in jax.tree.leaves(layout.abstract_params()))
    assert 12 * weights <= argument * layout.mesh.size < 12.1 * weights  # nothing of the state is held twice
    assert memory.alias_size_in_bytes > 0.999 * memory.output_size_in_bytes  # the new state takes the old one's memory
    assert argument + temporary < case.chip_bytes
    # The head is gathered once and its gradient exchanged once, not in every chunk of the loss.
    vocabulary = (
        rf"= \w+\[{layout.vocab_rows // case.mesh.tensor},{case.config.hidden_size}\]\S* (all-gather|all-reduce)\("
    )
    assert len(re.findall(vocabulary, compiled.as_text())) <= 2
