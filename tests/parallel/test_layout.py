"""Which axis of which array is cut, what one device then holds, and what cannot be cut."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from support import LLAMA_3_1_8B, LLAMA_3_1_70B, tiny_config

from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.model import forward
from clinmerge_jax.llama.parameters import (
    Params,
    abstract_params,
    axis_sizes,
    count_parameters,
    iterate_params,
    parameters,
)
from clinmerge_jax.parallel.layout import RULES, Layout, make_layout, one_device, partition_spec
from clinmerge_jax.parallel.mesh import MeshShape, build_mesh

LLAMAS = {"8B": LLAMA_3_1_8B, "70B": LLAMA_3_1_70B}
SHAPES = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2), (1, 2, 4), (4, 1, 2)]

# Eight heads of eight, so that nothing but the field under test stops a mesh of eight.
EVEN = {
    "vocab_size": 51,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}


def layout(shape: tuple[int, int, int], config: LlamaConfig) -> Layout:
    return Layout(build_mesh(MeshShape(*shape)), config)


def by_path(params: Params, config: LlamaConfig) -> dict[str, Any]:
    return {"/".join(row.path): leaf for row, leaf in iterate_params(params, config)}


def report_shards(cut: Layout, name: str) -> str:
    """Prints what one device holds of every leaf; returns its bytes at bfloat16 as one line."""
    shapes = cut.shard_shapes()
    for path, shape in shapes.items():
        print(f"{name:4} {path:46} {' x '.join(map(str, shape))}")
    nbytes = 2 * sum(map(math.prod, shapes.values()))
    whole = 2 * count_parameters(cut.config)
    axes = " x ".join(f"{axis} {size}" for axis, size in cut.mesh.shape.items())
    return (
        f"shards: Llama-3.1-{name} on {axes}: {nbytes:,} bytes of bfloat16 on each device,"
        f" {nbytes / whole:.6f} of the model"
    )


@pytest.mark.parametrize(
    ("axes", "spec"),
    [
        (("batch", None), PartitionSpec(("data", "fsdp"), None)),
        (("batch", None, "vocab"), PartitionSpec(("data", "fsdp"), None, "tensor")),
        (("vocab", "embed"), PartitionSpec("tensor", "fsdp")),
        (("layers", "heads", "embed"), PartitionSpec(None, "tensor", "fsdp")),
        (("layers", "kv_heads"), PartitionSpec(None, "tensor")),
        (("layers", "embed", "mlp"), PartitionSpec(None, "fsdp", "tensor")),
        ((None,), PartitionSpec(None)),
        ((), PartitionSpec()),
    ],
    ids=str,
)
def test_an_axis_is_cut_by_its_rule(axes, spec):
    assert partition_spec(*axes) == spec


def test_every_axis_of_a_parameter_and_the_batch_has_a_rule():
    assert set(RULES) == {*axis_sizes(LLAMAS["8B"]), "batch"}


def test_an_axis_without_a_rule_is_an_error():
    with pytest.raises(KeyError, match="width"):
        partition_spec("batch", "width")


@pytest.mark.parametrize("axes", [("heads", "mlp"), ("vocab", "kv_heads"), ("batch", "embed"), ("embed", "embed")])
def test_two_axes_cannot_be_cut_by_one_mesh_axis(axes):
    with pytest.raises(ValueError, match=re.escape(f"axes {axes} use one mesh axis twice")):
        partition_spec(*axes)


@pytest.mark.parametrize(
    ("field", "count", "axis", "divisor"),
    [
        ("num_attention_heads", 12, "tensor", 4),
        ("num_key_value_heads", 4, "tensor", 4),
        ("intermediate_size", 100, "tensor", 4),
        ("hidden_size", 60, "fsdp", 60),
    ],
)
def test_a_mesh_axis_that_does_not_divide_what_it_cuts_is_refused(field, count, axis, divisor):
    config = tiny_config(**{**EVEN, field: count})
    wrong, right = ((1, 1, 8), (1, 8, 1)) if axis == "tensor" else ((1, 8, 1), (1, 1, 8))
    with pytest.raises(BadInput) as refusal:
        layout(wrong, config)
    assert str(refusal.value) == (
        f"config.mesh.{axis}: 8 does not divide the model's {field} ({count}); give a divisor of {divisor}, or 0 to"
        " have one picked"
    )
    layout(right, config)
    layout((8, 1, 1), config)


def test_heads_are_cut_between_and_never_within():
    """Three key-value heads of eight entries could be cut in two by their 24 entries."""
    config = tiny_config(**{**EVEN, "num_attention_heads": 6, "num_key_value_heads": 3})
    with pytest.raises(BadInput, match=r"^config.mesh.tensor: 2 does not divide .* num_key_value_heads \(3\)"):
        layout((2, 2, 2), config)


@pytest.mark.parametrize(("tensor", "rows"), [(1, 51), (2, 52), (4, 52), (8, 56)])
def test_the_vocabulary_alone_is_padded(tensor, rows):
    cut = layout((8 // tensor, 1, tensor), tiny_config(**EVEN))
    assert cut.vocab_rows == rows
    for row in parameters(cut.config):
        shape = row.stacked_shape(cut.config)
        padded = (rows, shape[1]) if row.path[0] in ("embed_tokens", "lm_head") else shape
        assert cut.shape(row) == padded, row.path


def test_a_vocabulary_that_is_divided_is_not_padded():
    assert layout((1, 1, 8), tiny_config(**{**EVEN, "vocab_size": 56})).vocab_rows == 56


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", LLAMAS)
def test_shards_of_every_leaf_of_a_real_llama_tile_it(name, shape):
    cut = layout(shape, LLAMAS[name])
    leaves = by_path(cut.abstract_params(jnp.bfloat16), cut.config)
    whole = by_path(abstract_params(cut.config), cut.config)
    assert len(leaves) == 12 and leaves.keys() == whole.keys() == cut.shard_shapes().keys()
    for path, leaf in leaves.items():
        assert leaf.shape == whole[path].shape and leaf.dtype == jnp.bfloat16, path  # 128256 needs no padding
        shard = cut.shard_shapes()[path]
        assert leaf.sharding.shard_shape(leaf.shape) == shard
        places = leaf.sharding.devices_indices_map(leaf.shape).values()
        assert len(places) == 8
        parts = [len({(index.start, index.stop) for index in axis}) for axis in zip(*places)]
        assert tuple(part * size for part, size in zip(parts, shard)) == leaf.shape, path


@pytest.mark.parametrize("name", LLAMAS)
def test_the_forward_pass_of_a_real_llama_fits_its_layout(name):
    cut = layout((2, 2, 2), LLAMAS[name])
    tokens_BT = jax.ShapeDtypeStruct((8, 128), jnp.int32, sharding=cut.named("batch", None))

    def logits(params, tokens_BT):
        return forward(params, tokens_BT, cut.config, constrain=cut.constrain)

    out = jax.eval_shape(logits, cut.abstract_params(jnp.bfloat16), tokens_BT)
    assert out.shape == (8, 128, 128256) and out.dtype == jnp.bfloat16


def test_shards_of_llama_8b_on_two_by_two_by_two():
    shapes = layout((2, 2, 2), LLAMAS["8B"]).shard_shapes()
    assert shapes == {
        "embed_tokens/weight": (64128, 2048),
        "layers/input_layernorm/weight": (32, 2048),
        "layers/self_attn/q_proj/weight": (32, 2048, 2048),
        "layers/self_attn/k_proj/weight": (32, 512, 2048),
        "layers/self_attn/v_proj/weight": (32, 512, 2048),
        "layers/self_attn/o_proj/weight": (32, 2048, 2048),
        "layers/post_attention_layernorm/weight": (32, 2048),
        "layers/mlp/gate_proj/weight": (32, 7168, 2048),
        "layers/mlp/up_proj/weight": (32, 7168, 2048),
        "layers/mlp/down_proj/weight": (32, 2048, 7168),
        "norm/weight": (2048,),
        "lm_head/weight": (64128, 2048),
    }


@pytest.mark.parametrize("name", LLAMAS)
def test_a_device_holds_its_share_of_a_model_and_more_of_the_norms_alone(name, figures):
    cut = layout((1, 2, 4), LLAMAS[name])
    figures.append(report_shards(cut, name))
    held = sum(map(math.prod, cut.shard_shapes().values()))
    norms = (2 * cut.config.num_hidden_layers + 1) * cut.config.hidden_size
    assert held == (count_parameters(cut.config) - norms) // 8 + norms // 2


def test_layouts_are_equal_where_mesh_and_model_are():
    one, same = (layout((2, 2, 2), tiny_config(**EVEN)) for _ in range(2))
    assert one == same and hash(one) == hash(same)
    assert one != layout((1, 2, 4), tiny_config(**EVEN))
    assert one != layout((2, 2, 2), tiny_config(**{**EVEN, "vocab_size": 52}))


def test_a_function_is_compiled_once_for_equal_layouts():
    traced = []

    @jax.jit(static_argnames="cut")
    def double(x, cut):
        traced.append(cut)
        return cut.constrain(2 * x, "batch")

    for shape in ((2, 2, 2), (2, 2, 2), (1, 2, 4)):
        cut = layout(shape, tiny_config(**EVEN))
        np.testing.assert_array_equal(double(jnp.arange(8), cut), 2 * np.arange(8))
    assert len(traced) == 2


@pytest.mark.parametrize(
    ("axes", "shard"),
    [
        (("batch", None), (4, 16)),
        (("vocab", "embed"), (8, 8)),
        ((None, "mlp"), (16, 8)),
        ((None, None), (16, 16)),
    ],
    ids=str,
)
def test_put_keeps_the_values_and_cuts_them_as_asked(axes, shard):
    cut = layout((2, 2, 2), tiny_config(**EVEN))
    values = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    placed = cut.put(values, *axes)
    assert placed.sharding == cut.named(*axes) and placed.dtype == values.dtype
    assert len(placed.addressable_shards) == 8
    for piece in placed.addressable_shards:
        assert piece.data.shape == shard
        np.testing.assert_array_equal(piece.data, values[piece.index])
    np.testing.assert_array_equal(placed, values)


def test_constrain_cuts_a_value_of_a_jitted_function_as_asked():
    cut = layout((2, 2, 2), tiny_config(**EVEN))
    doubled = jax.jit(lambda x: cut.constrain(2 * x, "batch", "mlp"))(jnp.ones((8, 8)))
    assert doubled.sharding.is_equivalent_to(cut.named("batch", "mlp"), 2)
    assert {piece.data.shape for piece in doubled.addressable_shards} == {(2, 4)}


def test_shardings_and_abstract_params_are_those_of_each_row():
    cut = layout((2, 2, 2), tiny_config(**EVEN, attention_bias=True, mlp_bias=True))
    abstract = cut.abstract_params(jnp.float16)
    shardings = by_path(cut.shardings(), cut.config)
    assert len(shardings) == 19
    for row, leaf in iterate_params(abstract, cut.config):
        assert leaf.sharding == shardings["/".join(row.path)] == cut.sharding(row)
        assert leaf.shape == cut.shape(row) and leaf.dtype == jnp.float16
        assert leaf.sharding.spec == partition_spec(*row.logical_axes())


def test_a_made_layout_spans_all_devices_and_is_logged_once(caplog):
    config = tiny_config(**{**EVEN, "vocab_size": 53})
    with caplog.at_level("INFO", logger="absl"):
        made = [make_layout(config, MeshShape(tensor=4)) for _ in range(2)]
    assert made[0] is made[1] and made[0].config == config
    assert dict(made[0].mesh.shape) == {"data": 1, "fsdp": 2, "tensor": 4} and made[0].mesh.size == 8
    assert [record.getMessage() for record in caplog.records] == [
        "mesh data 1 x fsdp 2 x tensor 4: fsdp 2 divides hidden size 64; data 1 is the rest"
    ]


def test_a_made_layout_refuses_what_the_user_fixed_wrongly():
    with pytest.raises(BadInput, match=r"^config.mesh.tensor: 8 does not divide .* num_key_value_heads \(1\)"):
        make_layout(tiny_config(num_attention_heads=8, intermediate_size=96), MeshShape(tensor=8))


def test_the_layout_of_one_device_is_on_the_first_and_cuts_nothing():
    config = tiny_config(**EVEN)
    single = one_device(config)
    assert list(single.mesh.devices.flat) == jax.local_devices()[:1] and single is one_device(config)
    assert single.vocab_rows == 51 and single.parts("batch") == 1
    assert single.shard_shapes() == {"/".join(row.path): row.stacked_shape(config) for row in parameters(config)}
