"""Attention backends: kernels against the references in Pallas's interpreter, and what is taken or refused where."""

import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel
from support import tiny_config

from clinmerge_jax.errors import BadInput
from clinmerge_jax.generation import programs
from clinmerge_jax.generation.sampling import Kind
from clinmerge_jax.llama import attention, model
from clinmerge_jax.llama.attention import Backend, Use, over_cache, over_sequences, resolve
from clinmerge_jax.llama.cache import Cache, attend_cache, unstack
from clinmerge_jax.llama.model import attend_causally
from clinmerge_jax.llama.parameters import init_params
from clinmerge_jax.parallel.layout import Layout
from clinmerge_jax.parallel.mesh import MeshShape, build_mesh

HEADS, KV_HEADS = 4, 2
F32_NOISE = 1e-5
WIDE = tiny_config(num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=128)


@dataclasses.dataclass(frozen=True)
class Device:
    """Of a platform that this machine may lack."""

    platform: str


def draw(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng((seed, *shape)).normal(size=shape), dtype)


def sequences(rows, tokens, head_dim):
    """Queries, keys, values and segments of three documents a row, cut at other places in each."""
    q_BTNH = draw(rows, tokens, HEADS, head_dim)
    k_BTGH, v_BTGH = (draw(rows, tokens, KV_HEADS, head_dim, seed=seed) for seed in (1, 2))
    segments = np.sort(np.random.default_rng(3).integers(0, 3, (rows, tokens)), axis=1)
    return q_BTNH, k_BTGH, v_BTGH, jnp.asarray(segments, jnp.int32)


def naive(q_BTNH, k_BTGH, v_BTGH, segments_BT):
    """One query after another, in float64."""
    q_BTNH, k_BTGH, v_BTGH = (np.asarray(x, np.float64) for x in (q_BTNH, k_BTGH, v_BTGH))
    y_BTNH = np.zeros_like(q_BTNH)
    for row, place, head in np.ndindex(q_BTNH.shape[:3]):
        seen = np.flatnonzero(segments_BT[row, : place + 1] == segments_BT[row, place])
        group = head // (HEADS // KV_HEADS)
        scores = k_BTGH[row, seen, group] @ q_BTNH[row, place, head] / np.sqrt(q_BTNH.shape[-1])
        weights = np.exp(scores - scores.max())
        y_BTNH[row, place, head] = weights @ v_BTGH[row, seen, group] / weights.sum()
    return y_BTNH


@pytest.mark.parametrize("packed", [False, True])
def test_the_reference_is_causal_attention_within_documents(packed):
    *qkv, segments_BT = sequences(2, 9, 6)
    want = naive(*qkv, np.asarray(segments_BT) if packed else np.zeros((2, 9)))
    for attend in (attend_causally, over_sequences(Backend.REFERENCE)):
        np.testing.assert_allclose(attend(*qkv, segments_BT if packed else None), want, atol=F32_NOISE)


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
def test_blocks_of_queries_change_neither_result_nor_gradient(packed, monkeypatch):
    *qkv, segments_BT = sequences(2, 21, 6)
    segments_BT = segments_BT if packed else None

    def total(*qkv):
        return jnp.sum(jnp.sin(attend_causally(*qkv, segments_BT)))

    want = jax.value_and_grad(total, (0, 1, 2))(*qkv)
    monkeypatch.setattr(model, "_BLOCK", 4)
    program = jax.make_jaxpr(total)(*qkv)
    assert "2,2,8,21" not in str(program) and "2,2,8,20" in str(program)  # no scores of all queries at once
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=F32_NOISE), jax.grad(total, (0, 1, 2))(*qkv), want[1]
    )
    np.testing.assert_allclose(total(*qkv), want[0], rtol=1e-5)


@pytest.fixture
def interpreted(monkeypatch):
    """Splash attention runs on any device: JAX's interpreter for TPU kernels does not take it, its own switch does."""
    make = functools.partial(splash_attention_kernel.make_splash_mha, interpret=True)
    monkeypatch.setattr(splash_attention_kernel, "make_splash_mha", make)


def test_splash_and_its_gradient_are_the_references(interpreted):
    *qkv, segments_BT = sequences(2, 300, 8)  # padded to three blocks of 128

    def value_and_gradients(attend):
        def total(q_BTNH, k_BTGH, v_BTGH):
            y_BTNH = attend(q_BTNH, k_BTGH, v_BTGH, segments_BT)
            return jnp.sum(jnp.sin(y_BTNH)), y_BTNH

        (_, y_BTNH), gradients = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(*qkv)
        return y_BTNH, *gradients

    want = value_and_gradients(attend_causally)
    for one, other in zip(value_and_gradients(over_sequences(Backend.SPLASH)), want):
        np.testing.assert_allclose(one, other, atol=F32_NOISE)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_ragged_is_the_reference_and_takes_nothing_of_a_block_that_a_row_has_not_reached(dtype):
    length, block = 576, 192
    filled_B = np.array([1, block, block + 1, 400, length, length + 1])  # the last is beyond the cache: a dead slot
    q_B1NH = draw(6, 1, HEADS, 128, dtype=dtype)
    k_BGTH, v_BGTH = (draw(6, KV_HEADS, length, 128, seed=seed, dtype=dtype) for seed in (1, 2))
    positions_B1 = jnp.asarray(filled_B[:, None] - 1, jnp.int32)
    want = attend_cache(q_B1NH, k_BGTH, v_BGTH, positions_B1)[:-1]
    reached = np.arange(length) < -(-filled_B[:, None] // block) * block
    k_BGTH, v_BGTH = (jnp.where(reached[:, None, :, None], x, jnp.asarray(np.nan, dtype)) for x in (k_BGTH, v_BGTH))
    with pltpu.force_tpu_interpret_mode():
        found = over_cache(Backend.RAGGED)(q_B1NH, k_BGTH, v_BGTH, positions_B1)[:-1]
    assert found.shape == want.shape and found.dtype == dtype
    noise = F32_NOISE if dtype == jnp.float32 else 2e-2
    np.testing.assert_allclose(found.astype(jnp.float32), want.astype(jnp.float32), atol=noise)


def test_kernels_run_on_every_devices_rows_and_heads(interpreted):
    layout = Layout(build_mesh(MeshShape(2, 1, 2), jax.devices()[:4]), WIDE)
    *qkv, _ = sequences(4, 128, 8)
    attend = over_sequences(Backend.SPLASH, layout.map_shards)
    found = jax.jit(attend, out_shardings=layout.named("batch", None, "heads", None))(*qkv)
    assert found.sharding.shard_shape(found.shape) == (2, 128, HEADS // 2, 8)
    np.testing.assert_allclose(found, attend_causally(*qkv), atol=F32_NOISE)


def test_auto_takes_the_reference_on_a_processor_and_says_so_once(caplog):
    attention._first.cache_clear()
    device = jax.devices()[0]
    with caplog.at_level(logging.INFO, logger="absl"):
        for _ in range(2):
            assert resolve("auto", Use.CACHE, WIDE, jnp.float32, device, length=64) is Backend.REFERENCE
            assert resolve(Backend.AUTO, Use.SEQUENCES, WIDE, jnp.float32, device) is Backend.REFERENCE
    assert [record.getMessage() for record in caplog.records] == [
        "attention over the cache: reference; ragged needs a TPU, but this is a CPU",
        "attention over whole sequences: reference; splash needs a TPU, but this is a CPU; cudnn needs a GPU, but"
        " this is a CPU",
    ]


def test_auto_takes_the_kernels_of_an_accelerator(monkeypatch):
    tpu, gpu = Device("tpu"), Device("gpu")
    assert resolve("auto", Use.SEQUENCES, WIDE, jnp.float32, tpu, packed=True) is Backend.SPLASH
    assert resolve("auto", Use.CACHE, WIDE, jnp.bfloat16, tpu, length=640) is Backend.RAGGED
    assert resolve("auto", Use.CACHE, WIDE, jnp.int8, tpu, length=640) is Backend.REFERENCE
    assert resolve("auto", Use.CACHE, WIDE, jnp.bfloat16, gpu, length=640) is Backend.REFERENCE
    for problem, taken in ((None, Backend.CUDNN), ("fails here", Backend.REFERENCE)):
        attention._first.cache_clear()
        monkeypatch.setattr(attention, "_cudnn_fails", lambda *_, problem=problem: problem)
        assert resolve("auto", Use.SEQUENCES, WIDE, jnp.bfloat16, gpu) is taken
    attention._first.cache_clear()


@pytest.mark.parametrize(
    ("wanted", "use", "platform", "more", "says"),
    [
        ("cudnn", Use.SEQUENCES, "cpu", {}, "cudnn needs a GPU, but this is a CPU; give auto or splash or reference"),
        ("splash", Use.SEQUENCES, "cpu", {}, "splash needs a TPU, but this is a CPU; give auto or cudnn or reference"),
        ("ragged", Use.CACHE, "cpu", {}, "ragged needs a TPU, but this is a CPU; give auto or reference"),
        ("splash", Use.CACHE, "tpu", {}, "splash does not attend over the cache; give auto or ragged or reference"),
        ("ragged", Use.SEQUENCES, "tpu", {}, "ragged does not attend over whole sequences"),
        ("ragged", Use.CACHE, "tpu", {"dtype": jnp.int8}, "ragged reads a cache in bfloat16 or float32, not in int8"),
        (
            "ragged",
            Use.CACHE,
            "tpu",
            {"length": 100},
            "ragged needs a cache whose length is a multiple of 64 tokens, not 100",
        ),
        (
            "ragged",
            Use.CACHE,
            "tpu",
            {"config": tiny_config()},
            "ragged needs a head_dim that is a multiple of 128, not 8",
        ),
        (
            "cudnn",
            Use.SEQUENCES,
            "gpu",
            {"dtype": jnp.float32},
            "cudnn computes in bfloat16 or float16, not in float32",
        ),
        ("cudnn", Use.SEQUENCES, "gpu", {"packed": True}, "cudnn does not support rows of several documents"),
        ("flash", Use.CACHE, "cpu", {}, "'flash' is unknown; give one of auto, ragged, reference"),
    ],
)
def test_an_explicit_backend_that_cannot_be_had_is_refused(wanted, use, platform, more, says):
    given = {"config": WIDE, "dtype": jnp.bfloat16, "length": 64, **more}
    with pytest.raises(BadInput, match=f"^config.attention: {says}"):
        resolve(wanted, use, device=Device(platform), **given)


def test_splash_that_a_version_of_jax_lacks_is_refused(monkeypatch):
    monkeypatch.setattr(attention, "_SPLASH", "jax.no_such_module")
    attention._first.cache_clear()
    with pytest.raises(BadInput, match=f"splash is not part of JAX {jax.__version__}; give"):
        resolve("splash", Use.SEQUENCES, WIDE, jnp.bfloat16, Device("tpu"))


def test_the_trial_of_cudnn_tells_why_it_fails():
    assert attention._cudnn_fails(WIDE, jnp.dtype(jnp.bfloat16), jax.devices()[0]).startswith("fails here (")


def test_cudnn_refuses_rows_of_several_documents():
    with pytest.raises(BadInput, match="^config.attention: cudnn does not support rows of several documents"):
        over_sequences(Backend.CUDNN)(*sequences(1, 8, 8))


@pytest.mark.slow  # 8 s: the interpreter runs every step of the loop
def test_decoding_with_ragged_gives_the_tokens_of_the_reference():
    config = dataclasses.replace(WIDE, initializer_range=0.5)  # so that tokens depend on what is attended to
    layout = Layout(build_mesh(MeshShape(1, 1, 2), jax.devices()[:2]), config)
    params = jax.jit(functools.partial(init_params, config), out_shardings=layout.shardings())(jax.random.key(0))
    params = jax.jit(functools.partial(unstack, config=config), out_shardings=programs.unstacked(layout))(params)
    slots, length, kind = 3, 128, Kind()
    drawn = [draw(slots, KV_HEADS, length, config.head_dim, seed=seed) for seed in range(4)]

    def decoded(backend):
        state = programs.empty_state(layout, slots, length, jnp.float32, kind)
        state = dataclasses.replace(
            state,
            caches=(Cache(tuple(jnp.copy(x) for x in drawn[:2]), tuple(jnp.copy(x) for x in drawn[2:])),),
            tokens=jnp.array([3, 4, 5], jnp.int32),
            lengths=jnp.array([1, 70, 9], jnp.int32),
            limits=jnp.full(slots, 9, jnp.int32),
            live=jnp.array([True, True, False]),
        )
        stops, steps = jnp.full(16, -1, jnp.int32), jnp.int32(5)
        state, _ = programs.decode(
            programs.Models((params,), jnp.ones(1)),
            state,
            stops,
            steps,
            jnp.int32(0),
            layout=layout,
            kind=kind,
            attention=backend,
        )
        return np.asarray(state.output[:, :5])

    want = decoded(Backend.REFERENCE)
    with pltpu.force_tpu_interpret_mode():
        found = decoded(Backend.RAGGED)
    assert len(np.unique(want[:2])) > 3
    np.testing.assert_array_equal(found, want)
