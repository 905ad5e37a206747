"""Llama-3.1-8B's decode step compiles ahead of time for small TPU slices; needs the tpu extra, no TPU."""

import importlib.util
import re

import jax
import jax.numpy as jnp
import pytest
from support import LLAMA_3_1_8B, tpu_devices

from clinmerge_jax.generation import programs
from clinmerge_jax.generation.sampling import Kind
from clinmerge_jax.llama.attention import Backend
from clinmerge_jax.llama.cache import unstack
from clinmerge_jax.parallel.layout import Layout
from clinmerge_jax.parallel.mesh import build_mesh, pick_shape

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed; pip install clinmerge_jax[tpu]"
    ),
    pytest.mark.slow,  # a minute each: 32 layers one by one
]

SLOTS, LENGTH = 64, 1024
PODS = {"v5e:2x4": 16e9, "v6e:2x2": 32e9}  # bytes of a chip


@pytest.mark.parametrize("attention", [Backend.REFERENCE, Backend.RAGGED])
@pytest.mark.parametrize("topology", PODS)
def test_the_decode_step_fits(topology, attention, monkeypatch, figures):
    devices = tpu_devices(monkeypatch, topology, "v5litepod-8")
    shape, _ = pick_shape(LLAMA_3_1_8B, len(devices))
    layout = Layout(build_mesh(shape, devices), LLAMA_3_1_8B)

    def abstract(tree, shardings):
        return jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), tree, shardings)

    params = jax.eval_shape(lambda p: unstack(p, LLAMA_3_1_8B), layout.abstract_params(jnp.bfloat16))
    params = abstract(params, programs.unstacked(layout))
    state = jax.eval_shape(lambda: _state_alone(layout))
    state = abstract(state, programs.state_shardings(layout, jnp.bfloat16))
    whole = layout.named()
    scalar = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    stops = jax.ShapeDtypeStruct((16,), jnp.int32, sharding=whole)
    models = programs.Models((params,), jax.ShapeDtypeStruct((1,), jnp.float32, sharding=whole))
    arguments = models, state, stops, scalar, scalar
    compiled = programs.decode.lower(*arguments, layout=layout, kind=Kind(), attention=attention).compile()
    memory = compiled.memory_analysis()
    argument, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    figures.append(
        f"{topology}, {shape}, decode of {SLOTS} slots of {LENGTH} tokens, {attention.value}: argument"
        f" {argument / 1e9:.3f}, temporary {temporary / 1e9:.3f} GB a device"
    )
    assert argument + temporary < PODS[topology]
    text, layers = compiled.as_text(), layout.config.num_hidden_layers
    assert text.count("tpu_custom_call") == (layers if attention is Backend.RAGGED else 0)
    cached = state.caches[0].keys[0]
    shard = ",".join(map(str, cached.sharding.shard_shape(cached.shape)))
    assert f"bf16[{shard}]" in text and not re.search(rf"= bf16\[{shard}\]\S* copy\(", text)


def _state_alone(layout):
    """The shapes alone: arrays of the topology's devices cannot be made."""
    return programs.blank_state(layout.config, layout.vocab_rows, SLOTS, LENGTH, jnp.bfloat16, Kind())
