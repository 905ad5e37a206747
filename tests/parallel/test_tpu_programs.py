"""Llama-3.1-8B's programs compile ahead of time for TPU pods and fit their memory; needs the tpu extra, no TPU."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import LLAMA_3_1_8B, tpu_devices

from clinmerge_jax.llama.model import forward
from clinmerge_jax.llama.parameters import iterate_params, parameters
from clinmerge_jax.merging.engines import on_device
from clinmerge_jax.merging.methods import DIFFERENCES, METHODS, TensorSpec
from clinmerge_jax.parallel.layout import Layout
from clinmerge_jax.parallel.mesh import build_mesh, pick_shape

pytestmark = [
    pytest.mark.slow,  # --all installs libtpu
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed; pip install clinmerge_jax[tpu]"
    ),
]

BATCH, LENGTH = 16, 2048


@dataclasses.dataclass(frozen=True)
class Pod:
    """A topology and the memory of one of its chips."""

    topology: str
    chip_bytes: int


PODS = (Pod("v5e:4x4", 16 * 10**9), Pod("v5p:2x2x4", 95 * 10**9))


@pytest.fixture(scope="module", params=PODS, ids=lambda pod: pod.topology)
def pod(request):
    return request.param


@pytest.fixture(scope="module")
def layout(pod):
    with pytest.MonkeyPatch.context() as patch:
        devices = tpu_devices(patch, pod.topology, "v5litepod-16")
        shape, _ = pick_shape(LLAMA_3_1_8B, len(devices))
        return Layout(build_mesh(shape, devices), LLAMA_3_1_8B)


@pytest.fixture(scope="module")
def params(layout):
    return layout.abstract_params(jnp.bfloat16)


@pytest.fixture
def measure(pod, layout, figures):
    """Compiles, notes the bytes per device, and holds them against the chip's memory."""

    def run(label, lowered):
        compiled = lowered.compile()
        memory = compiled.memory_analysis()
        sizes = memory.argument_size_in_bytes, memory.temp_size_in_bytes, memory.output_size_in_bytes
        shape = " x ".join(f"{axis} {size}" for axis, size in layout.mesh.shape.items())
        argument, temporary, output = (f"{size / 1e9:.3f}" for size in sizes)
        figures.append(
            f"{pod.topology}, {shape}, {label}: argument {argument}, temporary {temporary}, output {output} GB a device"
        )
        assert sum(sizes) < pod.chip_bytes
        return compiled, sizes

    return run


def test_forward_pass_fits_and_gathers_weights_within_the_scan(layout, params, measure):
    tokens = jax.ShapeDtypeStruct((BATCH, LENGTH), jnp.int32, sharding=layout.named("batch", None))
    program = jax.jit(forward, static_argnames=("config", "constrain"))
    lowered = program.lower(params, tokens, config=LLAMA_3_1_8B, constrain=layout.constrain)
    compiled, (argument, temporary, output) = measure(f"forward of {BATCH} x {LENGTH} tokens", lowered)
    weights = sum(leaf.size * 2 for leaf in jax.tree.leaves(params)) / layout.mesh.size
    assert weights <= argument < 1.01 * weights  # nothing is replicated
    assert output == BATCH * LENGTH * LLAMA_3_1_8B.vocab_size * 2 // layout.mesh.size
    assert temporary < weights  # a stack gathered whole, all layers at once, would be at least as much again
    assert "all-gather" in compiled.as_text()


@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_merges_take_no_temporaries_and_no_communication(layout, params, measure, method):
    dtypes = tuple(np.dtype(leaf.dtype) for _, leaf in iterate_params(params, LLAMA_3_1_8B))
    layers = LLAMA_3_1_8B.num_hidden_layers
    coefficients = [
        {
            "args": {"coefficients": jax.ShapeDtypeStruct((*(layers,) * row.stacked, 2, 3), jnp.float32)},
            "row_args": {},
        }
        for row in parameters(LLAMA_3_1_8B)
    ]
    lowered = on_device.apply_program(layout, METHODS[method], dtypes).lower((params, params), coefficients, None)
    compiled, (argument, temporary, output) = measure(f"{method} merge", lowered)
    assert 2 * output <= argument < 2.01 * output
    assert temporary < 0.01 * output
    assert not any(name in compiled.as_text() for name in ("all-gather", "all-reduce", "all-to-all", "permute"))


def _block_rows(leaf):
    _, rows, columns = leaf.sharding.shard_shape(leaf.shape)
    return min(rows, on_device._BLOCK_BYTES // (4 * columns))


def test_statistics_take_the_memory_of_a_few_blocks(layout, params, measure):
    leaf = params["layers"]["mlp"]["gate_proj"]["weight"]
    rows = _block_rows(leaf)
    start = jax.ShapeDtypeStruct((), jnp.int32)
    lowered = on_device.block_statistics.lower(
        [leaf, leaf],
        start,
        start,
        start,
        args={},
        reduce=DIFFERENCES.reduce,
        ranked=None,
        tiled=True,
        bins=0,
        whole=leaf.shape[1],
        stacked=True,
        size=rows,
        sharding=leaf.sharding,
    )
    _, (_, temporary, output) = measure("statistics of a block of gate_proj's rows", lowered)
    assert temporary + output < 4 * on_device._BLOCK_BYTES


@pytest.mark.parametrize("method", ["ties", "della"])  # counts of codes; ranks within rows
def test_counts_and_ranks_take_the_memory_of_a_few_blocks(layout, params, measure, method):
    leaf = params["layers"]["mlp"]["gate_proj"]["weight"]
    rows = _block_rows(leaf)
    sources = [{"weight": 0.5, "density": 0.5, "epsilon": 0.1}] * 2
    spec = TensorSpec("tensor", leaf.shape[1], leaf.shape[2], METHODS[method].parameters, sources, True)
    reduction = next(METHODS[method].reductions(spec))
    start = jax.ShapeDtypeStruct((), jnp.int32)
    lowered = on_device.block_statistics.lower(
        [leaf] * 3,
        start,
        start,
        start,
        args=dict(reduction.args),
        reduce=reduction.reduce,
        ranked=METHODS[method].ranked,
        tiled=False,
        bins=reduction.bins,
        whole=leaf.shape[1],
        stacked=True,
        size=rows,
        sharding=leaf.sharding,
    )
    _, (_, temporary, output) = measure(f"first pass of {method}, one block of gate_proj's rows", lowered)
    assert temporary + output < 8 * on_device._BLOCK_BYTES
