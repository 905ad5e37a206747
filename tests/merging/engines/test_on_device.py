"""The on-device engine: the streaming engine's bits on every mesh, one compilation for all t, no memory of its own."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from support import in_every_run, llama_tensors, tiny_config, write_llama

from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.output import OutputFolder
from clinmerge_jax.checkpoint.parameters.params import llama_config, load_params, write_weights
from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.parameters import parameters
from clinmerge_jax.merging import exact
from clinmerge_jax.merging.engines import on_device
from clinmerge_jax.merging.engines.on_device import OnDeviceMerge
from clinmerge_jax.merging.engines.streaming import run_merge
from clinmerge_jax.merging.plan import plan_merge
from clinmerge_jax.merging.recipes.recipe import Recipe, Source, two_parents
from clinmerge_jax.merging.recipes.schedule import Schedule
from clinmerge_jax.parallel.layout import Layout
from clinmerge_jax.parallel.mesh import MeshShape, build_mesh

SCHEDULE = "self_attn=0,1; mlp=1,0.25; 0.5"
METHODS = ["linear", "slerp"]
MESHES = [(1, 1, 1), (8, 1, 1), (2, 2, 2), (1, 1, 8), (1, 8, 1)]
SIZES = {
    # Rows shorter than a tile: every cut of a row lies within one. No mesh divides the vocabulary.
    "small": {
        "vocab_size": 51,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "num_hidden_layers": 3,
    },
    # fsdp or tensor 2 cuts rows of 512 into two whole tiles, and rows of 768 within one.
    "wide": {
        "vocab_size": 259,
        "hidden_size": 512,
        "intermediate_size": 768,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "num_hidden_layers": 2,
    },
}
CASES = [("small", dtype, mesh) for dtype in ("bfloat16", "float32") for mesh in MESHES]
CASES += [("wide", "bfloat16", mesh) for mesh in MESHES]
CASES += [("small", "float16", (2, 2, 2)), ("wide", "float32", (2, 2, 2))]


def _often(case):
    return case[2] == (2, 2, 2) and case[:2] != ("wide", "float32")


def _dtype(name):
    return np.dtype(getattr(ml_dtypes, name, name))


def _mesh(shape):
    return build_mesh(MeshShape(*shape), jax.devices()[: MeshShape(*shape).size])


def _recipe(method, t=SCHEDULE, dtype=""):
    return two_parents(method, "one", "two", t, dtype=dtype)


def _plan(recipe, parents):
    return plan_merge(recipe, parents, parents[0].nbytes // 3)  # a few weight files


def _files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "provenance.json"}


def _stream(recipe, parents, target):
    """Every file of the streaming engine's result, and the differences by tensor."""
    with OutputFolder(target, {}) as output:
        output.open()
        differences, _ = run_merge(_plan(recipe, parents), output)
        output.commit({})
    return _files(target), {difference.name: difference for difference in differences}


def _engine(parents, shape):
    mesh = _mesh(shape)
    layout = Layout(mesh, llama_config(parents[0]))
    sources = [load_params(parent, mesh=mesh)[1] for parent in parents]
    return OnDeviceMerge(layout, sources, [str(parent.path) for parent in parents])


def _write(merged, engine, recipe, parents, target):
    plan = _plan(recipe, parents)
    with OutputFolder(target, {}) as output:
        output.open()
        write_weights(merged, engine.layout, plan.files, output)
        plan.write_small_files(output)
        output.commit({})
    return _files(target)


@pytest.fixture(scope="module")
def make_parents(tmp_path_factory):
    @functools.cache
    def make(size, dtype):
        folder = tmp_path_factory.mktemp(f"{size}-{dtype}")
        folders = [write_llama(folder / name, n, _dtype(dtype), **SIZES[size]) for n, name in enumerate(("one", "two"))]
        return [open_checkpoint(str(path), "config.parent") for path in folders]

    return make


@pytest.fixture(scope="module")
def streamed(make_parents, tmp_path_factory):
    @functools.cache
    def stream(size, dtype, method):
        return _stream(_recipe(method), make_parents(size, dtype), tmp_path_factory.mktemp("streamed") / "merged")

    return stream


@pytest.fixture(scope="module", params=in_every_run(CASES, _often, lambda case: "-".join(map(str, case))))
def case(request, make_parents):
    """Size, dtype, parents and the engine with them on a mesh."""
    size, dtype, shape = request.param
    parents = make_parents(size, dtype)
    return size, dtype, parents, _engine(parents, shape)


@pytest.fixture(scope="module")
def small(make_parents):
    """The parents of size small in bfloat16."""
    return make_parents("small", "bfloat16")


@pytest.fixture(scope="module")
def small_engine(small):
    """An engine with them on a mesh of all three axes."""
    return _engine(small, (2, 2, 2))


def test_the_sizes_have_rows_cut_between_tiles_and_within_one():
    assert SIZES["wide"]["hidden_size"] // 2 % exact.TILE == 0 != SIZES["wide"]["intermediate_size"] // 2 % exact.TILE
    assert SIZES["small"]["intermediate_size"] < exact.TILE


@pytest.mark.parametrize("method", METHODS)
def test_every_file_is_the_streaming_engines(case, method, streamed, tmp_path):
    size, dtype, parents, engine = case
    expected, _ = streamed(size, dtype, method)
    assert len(expected) > 4  # weight files, index and config.json
    recipe = _recipe(method)
    assert _write(engine.merge(recipe), engine, recipe, parents, tmp_path / "merged") == expected


@pytest.mark.parametrize("method", METHODS)
def test_the_differences_are_the_streaming_engines(case, method, streamed):
    size, dtype, _, engine = case
    _, expected = streamed(size, dtype, method)
    assert engine.differences(_recipe(method)) == expected


def test_the_result_lies_as_the_sources_do(case):
    _, dtype, _, engine = case
    merged = engine.merge(_recipe("linear"))

    def check(leaf, source):
        assert (leaf.shape, leaf.dtype, leaf.sharding) == (source.shape, _dtype(dtype), source.sharding)

    jax.tree.map(check, merged, engine.sources[0])


@contextlib.contextmanager
def _compilations():
    """The backend's compilations while the body runs, as a list that grows."""
    seen = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("method", METHODS)
def test_another_t_compiles_nothing(method, small):
    on_device.apply_program.cache_clear()
    engine = _engine(small, (2, 2, 2))
    with _compilations() as seen:
        jax.block_until_ready(engine.merge(_recipe(method, 0.5)))
        assert seen, "the first merge compiles"
        seen.clear()
        results = [engine.merge(_recipe(method, float(t))) for t in np.linspace(0, 1, 21)]
        jax.block_until_ready(results)
        assert seen == []
    assert len({np.asarray(merged["lm_head"]["weight"]).tobytes() for merged in results}) == 21


def test_a_result_takes_over_the_memory_of_an_earlier_one(small_engine):
    def places(merged):
        return [shard.data.unsafe_buffer_pointer() for x in jax.tree.leaves(merged) for shard in x.addressable_shards]

    expected = jax.tree.map(np.asarray, small_engine.merge(_recipe("linear", 0.75)))
    earlier = jax.block_until_ready(small_engine.merge(_recipe("linear", 0.25)))
    before = places(earlier)
    merged = jax.block_until_ready(small_engine.merge(_recipe("linear", 0.75), into=earlier))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(earlier))
    assert sorted(places(merged)) == sorted(before)
    jax.tree.map(np.testing.assert_array_equal, merged, expected)
    with _compilations() as seen:
        for t in np.linspace(0, 1, 5):
            merged = small_engine.merge(_recipe("linear", float(t)), into=merged)
        jax.tree.map(np.testing.assert_array_equal, merged, small_engine.sources[1])
    assert seen == []


@pytest.mark.parametrize("method", METHODS)
def test_the_ends_are_the_parents(method, small_engine):
    for t, source in zip((0, 1), small_engine.sources):
        jax.tree.map(np.testing.assert_array_equal, small_engine.merge(_recipe(method, t)), source)


def test_statistics_are_taken_once_and_linear_takes_none(small, monkeypatch):
    calls, real = [], on_device.tensor_statistics

    def record(step, row, layout, leaves, layer, ranked):
        calls.append(row.names(layout.config)[layer])
        return real(step, row, layout, leaves, layer, ranked)

    monkeypatch.setattr(on_device, "tensor_statistics", record)
    engine = _engine(small, (2, 2, 2))
    engine.merge(_recipe("linear"))
    assert calls == []
    for t in (0.2, 0.4):
        engine.merge(_recipe("slerp", t))
        engine.differences(_recipe("linear", t))
    config = engine.layout.config
    assert calls == [name for row in parameters(config) for name in row.names(config)]


@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 8, 1), (8, 1, 1)])
@pytest.mark.parametrize("count, reuse", [(2, False), (3, False), (2, True)])
def test_a_merge_has_no_temporaries_and_no_communication(shape, count, reuse, monkeypatch, figures):
    config = tiny_config(
        vocab_size=1024,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=64,
    )
    layout = Layout(_mesh(shape), config)
    compiled_apply = on_device.apply_program
    monkeypatch.setattr(on_device, "apply_program", lambda *key: compiled_apply(*key).lower)
    weights = tuple(Source(str(n), {"weight": Schedule.parse(n + 1, "weight")}) for n in range(count))
    abstract = layout.abstract_params(jnp.bfloat16)
    engine = OnDeviceMerge(layout, [abstract] * count, "abc")
    compiled = engine.merge(Recipe("linear", weights), into=abstract if reuse else None).compile()
    memory = compiled.memory_analysis()
    temporary, result = memory.temp_size_in_bytes, memory.output_size_in_bytes
    where = " into an earlier result" if reuse else ""
    figures.append(f"on-device merge of {count} on {shape}{where}: {temporary} B of temporaries, {result} B of result")
    held = 2 * sum(np.prod(one) for one in layout.shard_shapes().values())
    assert held <= result < 1.01 * held and temporary < 0.01 * held
    assert memory.alias_size_in_bytes == (held if reuse else 0)
    text = compiled.as_text()
    assert not any(word in text for word in ("all-gather", "all-reduce", "collective-permute", "all-to-all"))


@pytest.mark.parametrize("method", METHODS)
def test_the_dtype_of_the_recipe_is_that_of_the_result(method, small, small_engine, tmp_path):
    for dtype in ("float32", "float16"):
        recipe = _recipe(method, dtype=dtype)
        merged = small_engine.merge(recipe)
        assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {_dtype(dtype)}
        expected, _ = _stream(recipe, small, tmp_path / f"{dtype} streamed")
        assert _write(merged, small_engine, recipe, small, tmp_path / dtype) == expected


def test_three_models_merge_and_dtypes_may_differ(tmp_path):
    dtypes = ("bfloat16", "float32", "float16")
    folders = [write_llama(tmp_path / name, n, _dtype(name), **SIZES["small"]) for n, name in enumerate(dtypes)]
    sources = [open_checkpoint(str(folder), "x") for folder in folders]
    schedules = [Schedule.parse(value, "weight") for value in ("1", "mlp=0,2; 1", "3")]
    recipe = Recipe("linear", tuple(Source(name, {"weight": s}) for name, s in zip(dtypes, schedules)))
    engine = _engine(sources, (2, 2, 2))
    files, differences = _stream(recipe, sources, tmp_path / "streamed")
    assert _write(engine.merge(recipe), engine, recipe, sources, tmp_path / "merged") == files
    assert engine.differences(recipe) == differences


def _broken(tmp_path, name, index, value):
    tensors = llama_tensors({**SIZES["small"], "tie_word_embeddings": False}, 1)
    tensors[name][index] = value
    write_llama(tmp_path / "one", **SIZES["small"])
    write_llama(tmp_path / "two", tensors=tensors, **SIZES["small"])
    parents = [open_checkpoint(str(tmp_path / folder), "x") for folder in ("one", "two")]
    mesh = _mesh((2, 2, 2))
    layout = Layout(mesh, llama_config(parents[0]))
    return OnDeviceMerge(layout, [load_params(p, mesh=mesh)[1] for p in parents], ["the first", "the second"])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(value, tmp_path):
    name = "model.layers.2.mlp.down_proj.weight"
    engine = _broken(tmp_path, name, (3, 23), value)
    refused = pytest.raises(BadInput, match=f"^the first or the second: tensor {name} holds NaN")
    with refused:
        engine.differences(_recipe("linear"))
    with refused:
        engine.merge(_recipe("slerp"))


@pytest.mark.parametrize("method", METHODS)
def test_values_that_float16_may_not_hold_are_refused(method, tmp_path):
    engine = _broken(tmp_path, "lm_head.weight", (50, 15), 1e6)
    on_device.refuse_overflow(engine.merge(_recipe(method)), engine.layout)
    with pytest.raises(BadInput, match="config.dtype: tensor lm_head.weight comes to values over"):
        on_device.refuse_overflow(engine.merge(_recipe(method, dtype="float16")), engine.layout)


def test_weights_that_add_up_to_zero_are_refused_by_tensor(small_engine):
    weights = [Schedule.parse(value, "weight") for value in ("mlp=0,1; 1", "mlp=1,-1; 1")]
    recipe = Recipe("linear", tuple(Source(name, {"weight": weight}) for name, weight in zip("ab", weights)))
    with pytest.raises(BadInput, match="tensor model.layers.2.mlp.gate_proj.weight: the weights add up to 0"):
        small_engine.merge(recipe)


@pytest.mark.parametrize("size, nbytes", [("small", 200), ("wide", 20_000)])
def test_statistics_in_row_blocks_come_to_the_same(size, nbytes, monkeypatch, make_parents, streamed):
    """Blocks of a few rows, which do not divide the shards."""
    monkeypatch.setattr(on_device, "_BLOCK_BYTES", nbytes)
    _, expected = streamed(size, "bfloat16", "slerp")
    differences = _engine(make_parents(size, "bfloat16"), (2, 2, 2)).differences(_recipe("slerp"))
    assert {n: d.totals for n, d in differences.items()} == {n: d.totals for n, d in expected.items()}
