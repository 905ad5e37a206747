"""Attention kernels compile ahead of time for TPUs in Llama-3.1-8B's shapes; needs the tpu extra, no TPU."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from support import LLAMA_3_1_8B, tpu_devices

from clinmerge_jax.llama.attention import Backend, over_cache, over_sequences
from clinmerge_jax.parallel.layout import Layout
from clinmerge_jax.parallel.mesh import MeshShape, build_mesh

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed; pip install clinmerge_jax[tpu]"
)

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
BATCH, TOKENS = 4, 2048
SLOTS, LENGTH = 64, 1024
MESHES = {
    "v5e:2x4": [MeshShape(1, 1, 1), MeshShape(1, 1, 8), MeshShape(1, 2, 4)],
    "v6e:2x2": [MeshShape(1, 1, 1), MeshShape(2, 1, 2)],
}
CASES = [(topology, shape) for topology, shapes in MESHES.items() for shape in shapes]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}".replace(" ", ""))
def layout(request, monkeypatch):
    topology, shape = request.param
    devices = tpu_devices(monkeypatch, topology, "v5litepod-8")
    return Layout(build_mesh(shape, devices[: shape.size]), LLAMA_3_1_8B)


@pytest.fixture
def measure(layout, figures):
    """Compiles, notes the bytes per device, and returns the program's text and its temporary bytes."""

    def run(label, function, *arguments):
        compiled = jax.jit(function).lower(*arguments).compile()
        memory, device = compiled.memory_analysis(), layout.device.device_kind
        argument, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
        shape = " x ".join(f"{axis} {size}" for axis, size in layout.mesh.shape.items())
        figures.append(
            f"{device}, {shape}, {label}: argument {argument / 1e6:.1f}, temporary {temporary / 1e6:.1f} MB a device"
        )
        return compiled.as_text(), temporary

    return run


def abstract(layout, shape, *axes, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=layout.named(*axes))


def sequences(layout):
    queries = abstract(layout, (BATCH, TOKENS, HEADS, HEAD_DIM), "batch", None, "heads", None)
    keys = abstract(layout, (BATCH, TOKENS, KV_HEADS, HEAD_DIM), "batch", None, "kv_heads", None)
    return queries, keys, keys, abstract(layout, (BATCH, TOKENS), "batch", None, dtype=jnp.int32)


def scores_bytes(layout):
    """Of one row's float32 scores, which the reference writes to memory and a kernel does not."""
    return 4 * HEADS // layout.parts("heads") * TOKENS**2


@pytest.mark.slow  # 10 s each
def test_splash_and_its_gradient_write_no_scores(layout, measure):
    attend = over_sequences(Backend.SPLASH, layout.map_shards)

    def total(q_BTNH, k_BTGH, v_BTGH, segments_BT):
        return jnp.sum(attend(q_BTNH, k_BTGH, v_BTGH, segments_BT).astype(jnp.float32))

    with jax.default_matmul_precision("highest"):  # which Pallas refuses for bfloat16
        text, temporary = measure(f"splash of {BATCH} x {TOKENS} tokens", attend, *sequences(layout))
    assert "tpu_custom_call" in text and temporary < scores_bytes(layout)
    assert not any(name in text for name in ("all-gather", "all-reduce", "all-to-all", "collective-permute"))
    label = f"splash's gradient of {BATCH} x {TOKENS} tokens"
    text, temporary = measure(label, jax.grad(total, (0, 1, 2)), *sequences(layout))
    assert text.count("tpu_custom_call") >= 3 and temporary < scores_bytes(layout)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(jnp.float32, marks=pytest.mark.slow)])
def test_ragged_copies_no_cache(layout, measure, dtype):
    queries = abstract(layout, (SLOTS, 1, HEADS, HEAD_DIM), "batch", None, "heads", None, dtype=dtype)
    cached = abstract(layout, (SLOTS, KV_HEADS, LENGTH, HEAD_DIM), "batch", "kv_heads", None, None, dtype=dtype)
    positions = abstract(layout, (SLOTS, 1), "batch", None, dtype=jnp.int32)
    attend = over_cache(Backend.RAGGED, layout.map_shards)
    with jax.default_matmul_precision("highest"):
        label = f"ragged over {SLOTS} slots of {LENGTH} tokens in {jnp.dtype(dtype)}"
        text, temporary = measure(label, attend, queries, cached, cached, positions)
    assert "tpu_custom_call" in text and temporary < 4e6
    assert not any(name in text for name in ("all-gather", "all-reduce", "all-to-all", "collective-permute"))
