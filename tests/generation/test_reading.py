"""Prompts that fill all slots are read together, with the same results as one at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import TINY

from clinmerge_jax.generation import programs, reading
from clinmerge_jax.generation.engine import Engine, Request
from clinmerge_jax.llama.cache import empty_cache, extend, unstack
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.parameters import init_params
from clinmerge_jax.parallel.layout import Layout
from clinmerge_jax.parallel.mesh import MeshShape, build_mesh

SLOTS, VOCABULARY = 16, 64
SIZES = {"num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 32, "head_dim": 4}
CONFIG = LlamaConfig.from_json(
    {
        **TINY,
        **SIZES,
        "num_hidden_layers": 2,
        "vocab_size": VOCABULARY,
        "intermediate_size": 48,
        "max_position_embeddings": 96,
    },
    "config.json",
)


def _engine(mesh=(1, 1, 1), **settings):
    shape = MeshShape(*mesh)
    layout = Layout(build_mesh(shape, jax.devices()[: shape.size]), CONFIG)
    make = jax.jit(lambda: init_params(CONFIG, jax.random.key(0), jnp.float32), out_shardings=layout.shardings())
    return Engine(layout, make(), **{"slots": SLOTS, "length": 96, "chunks": (16, 32), **settings})


def _prompts(count, shortest, longest, prefix=()):
    rng = np.random.default_rng(count)
    lengths = rng.integers(shortest, longest + 1, count)
    return [np.array([*prefix, *rng.integers(0, VOCABULARY, length)], np.int32) for length in lengths]


def _tokens(engine, prompts):
    answers = dict(engine.generate([Request(prompt, 6) for prompt in prompts]))
    return [answers[index].tokens.tolist() for index in range(len(prompts))]


def _logs(engine, prompts):
    return np.concatenate([log for log, _ in engine.score([(prompt, np.arange(5)) for prompt in prompts])])


@pytest.fixture(autouse=True)
def precise():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture
def reads(monkeypatch):
    """Of every chunk that was read: its rows, its width, and the two static flags."""
    found, read_chunk = [], programs.read_chunk

    def recorded(params, cache, last, slots, chunk, *rest, fresh, whole, **more):
        found.append((*chunk.shape, fresh, whole))
        return read_chunk(params, cache, last, slots, chunk, *rest, fresh=fresh, whole=whole, **more)

    monkeypatch.setattr(programs, "read_chunk", recorded)
    return found


PROMPTS = {
    "one chunk": _prompts(SLOTS, 17, 32),
    "several chunks": _prompts(SLOTS, 70, 80),
    "a prefix that all share": _prompts(SLOTS, 33, 40, prefix=range(20)),
    "more prompts than slots": _prompts(2 * SLOTS + 5, 24, 32),
}


@pytest.mark.parametrize(
    ("kind", "int8_cache"),
    [
        pytest.param(kind, int8_cache, marks=[pytest.mark.slow] * (kind == "several chunks"))
        for kind, int8_cache in (*((kind, False) for kind in PROMPTS), ("several chunks", True))
    ],
)
def test_a_full_batch_is_read_as_one_prompt_at_a_time(kind, int8_cache, reads):
    prompts = PROMPTS[kind]
    together = _engine(int8_cache=int8_cache)
    alone = _engine(int8_cache=int8_cache, slots=1, share_prefix=False)
    assert _tokens(together, prompts) == _tokens(alone, prompts)
    assert any(rows == SLOTS and whole for rows, _, _, whole in reads)
    # Two roundings of a key to int8 may differ by a step of 1/127.
    np.testing.assert_allclose(
        _logs(together, prompts), _logs(alone, prompts), rtol=0, atol=1e-2 if int8_cache else 1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(8, 1, 1), (2, 2, 2)])
def test_a_full_batch_is_read_the_same_on_meshes(mesh):
    prompts = _prompts(SLOTS, 30, 40)
    assert _tokens(_engine(mesh), prompts) == _tokens(_engine(), prompts)


def test_a_full_batch_takes_one_program_for_each_chunk(reads):
    _tokens(_engine(), _prompts(SLOTS, 40, 48))
    assert reads == [(SLOTS, 32, True, True), (SLOTS, 16, False, True)]


@pytest.mark.parametrize(
    ("prompts", "why"),
    [
        (_prompts(SLOTS - 1, 17, 32), "they do not fill the slots"),
        ([*_prompts(1, 80, 80), *_prompts(SLOTS - 1, 1, 16)], "most are much shorter than the longest"),
    ],
)
def test_other_prompts_are_read_a_few_at_a_time(prompts, why, reads):
    _tokens(_engine(share_prefix=False), prompts)
    assert {(rows, whole) for rows, _, _, whole in reads} == {(SLOTS // 8, False)}, why


def test_bits_of_one_chunk_do_not_depend_on_how_many_are_read_together(monkeypatch, reads):
    """Of one chunk alone: over the cache the products of S rows and of P may be rounded differently."""
    prompts = _prompts(SLOTS, 40, 60)
    together = _logs(_engine(chunks=(32, 64)), prompts)
    monkeypatch.setattr(reading, "_TEMPORARIES", 0)
    apart = _logs(_engine(chunks=(32, 64)), prompts)
    assert {(rows, whole) for rows, _, _, whole in reads} == {(SLOTS, True), (SLOTS // 8, False)}
    np.testing.assert_array_equal(together, apart)


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.int8], ids=["float32", "int8"])
def test_one_token_of_each_row_comes_out_of_the_last_layer_as_it_does_among_all(fresh, dtype):
    params = unstack(init_params(CONFIG, jax.random.key(0), jnp.float32), CONFIG)
    rng = np.random.default_rng(3)
    tokens, asked = rng.integers(0, VOCABULARY, (4, 12)), jnp.array([0, 11, 5, 7])
    positions = np.broadcast_to(np.arange(12), tokens.shape)
    cache = empty_cache(CONFIG, 4, 32, dtype)
    read = functools.partial(extend, params, cache, tokens, positions, CONFIG, fresh=fresh)
    (all_BCD, filled), (one_B1D, same) = jax.jit(read)(), jax.jit(read)(asked_B=asked)
    np.testing.assert_allclose(one_B1D[:, 0], all_BCD[np.arange(4), asked], rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6), filled, same)
