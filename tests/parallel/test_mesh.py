"""How a mesh is picked, refused and built."""

import jax
import pytest
from jax.sharding import AxisType
from support import LLAMA_3_1_8B, tiny_config

from clinmerge_jax.errors import BadInput
from clinmerge_jax.parallel.mesh import AXES, MeshShape, build_mesh, pick_shape

THREE_KV_HEADS = tiny_config(hidden_size=48, num_attention_heads=6, num_key_value_heads=3)


@pytest.mark.parametrize(
    ("devices", "shape"),
    [(1, (1, 1, 1)), (8, (1, 1, 8)), (16, (1, 2, 8)), (24, (3, 1, 8)), (256, (1, 32, 8))],
)
def test_an_8b_model_is_cut_by_heads_first_then_by_hidden_size(devices, shape):
    assert pick_shape(LLAMA_3_1_8B, devices)[0] == MeshShape(*shape)


@pytest.mark.parametrize(
    ("fields", "shape"),
    [
        ({}, MeshShape(1, 8, 1)),
        ({"hidden_size": 36}, MeshShape(2, 4, 1)),
        ({"hidden_size": 27}, MeshShape(8, 1, 1)),
        ({"num_key_value_heads": 6}, MeshShape(1, 4, 2)),
        ({"num_attention_heads": 8, "num_key_value_heads": 8, "intermediate_size": 20}, MeshShape(1, 2, 4)),
        ({"num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 16}, MeshShape(1, 2, 4)),
        ({"num_attention_heads": 4, "num_key_value_heads": 8, "intermediate_size": 16}, MeshShape(1, 2, 4)),
    ],
    ids=str,
)
def test_no_open_axis_is_given_more_than_divides_what_it_cuts(fields, shape):
    config = tiny_config(
        **{"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 3, "intermediate_size": 24, **fields}
    )
    assert pick_shape(config, 8)[0] == shape


def test_an_open_tensor_axis_is_no_wider_than_eight_and_a_fixed_one_may_be():
    wide = tiny_config(hidden_size=64, intermediate_size=64, num_attention_heads=64, num_key_value_heads=64)
    assert pick_shape(wide, 64)[0] == MeshShape(1, 8, 8)
    assert pick_shape(wide, 64, MeshShape(tensor=64))[0] == MeshShape(1, 1, 64)


@pytest.mark.parametrize(
    ("wanted", "shape"),
    [
        (MeshShape(data=8), MeshShape(8, 1, 1)),
        (MeshShape(data=2), MeshShape(2, 1, 4)),
        (MeshShape(fsdp=8), MeshShape(1, 8, 1)),
        (MeshShape(fsdp=2), MeshShape(1, 2, 4)),
        (MeshShape(tensor=1), MeshShape(1, 8, 1)),
        (MeshShape(tensor=2), MeshShape(1, 4, 2)),
        (MeshShape(fsdp=1, tensor=1), MeshShape(8, 1, 1)),
        (MeshShape(data=2, tensor=2), MeshShape(2, 2, 2)),
        (MeshShape(data=4, fsdp=2), MeshShape(4, 2, 1)),
        (MeshShape(2, 2, 2), MeshShape(2, 2, 2)),
    ],
    ids=str,
)
def test_fixed_axes_are_kept_and_the_others_filled(wanted, shape):
    assert pick_shape(LLAMA_3_1_8B, 8, wanted)[0] == shape


@pytest.mark.parametrize("config", [LLAMA_3_1_8B, THREE_KV_HEADS, tiny_config()], ids=["8b", "three", "tiny"])
def test_the_product_is_the_number_of_devices(config):
    for devices in (*range(1, 33), 48, 96, 100, 256, 1000, 4096):
        for wanted in (MeshShape(), MeshShape(fsdp=1), MeshShape(tensor=1), MeshShape(fsdp=devices)):
            shape, _ = pick_shape(config, devices, wanted)
            assert shape.size == shape.data * shape.fsdp * shape.tensor == devices


def test_the_reason_names_the_numbers_of_every_axis_that_was_picked():
    _, reason = pick_shape(LLAMA_3_1_8B, 16)
    assert reason == (
        "tensor 8 divides 32 heads, 8 key-value heads and MLP width 14336; fsdp 2 divides hidden size 4096;"
        " data 1 is the rest"
    )
    _, reason = pick_shape(LLAMA_3_1_8B, 16, MeshShape(tensor=4))
    assert reason == "fsdp 4 divides hidden size 4096; data 1 is the rest"
    _, reason = pick_shape(LLAMA_3_1_8B, 8, MeshShape(2, 2, 2))
    assert reason == "as the config says"


@pytest.mark.parametrize("axis", AXES)
def test_a_negative_axis_is_refused_by_its_field(axis):
    with pytest.raises(BadInput) as refusal:
        pick_shape(LLAMA_3_1_8B, 8, MeshShape(**{axis: -2}))
    assert str(refusal.value).startswith(f"config.mesh.{axis}: is -2; ") and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "wanted",
    [MeshShape(3), MeshShape(fsdp=16), MeshShape(2, 2, 4), MeshShape(1, 1, 1), MeshShape(tensor=5), MeshShape(2, 3)],
    ids=str,
)
def test_a_product_that_does_not_fit_is_refused_with_the_shape_and_the_devices(wanted):
    with pytest.raises(BadInput) as refusal:
        pick_shape(LLAMA_3_1_8B, 8, wanted)
    message = str(refusal.value)
    assert message.startswith(f"config.mesh: {wanted} does not use each of 8 devices once; ") and "\n" not in message


def test_devices_that_no_open_axis_can_take_are_refused():
    odd = tiny_config(hidden_size=27, num_attention_heads=3, num_key_value_heads=3)
    with pytest.raises(BadInput, match="^config.mesh: data 2 x fsdp 0 x tensor 0 leaves .* 2 of 8 devices.*size 27"):
        pick_shape(odd, 8, MeshShape(data=2))


def test_a_mesh_spans_all_devices_with_axes_that_propagate():
    mesh = build_mesh(MeshShape(2, 1, 4))
    assert mesh.axis_names == AXES == ("data", "fsdp", "tensor")
    assert dict(mesh.shape) == {"data": 2, "fsdp": 1, "tensor": 4}
    assert mesh.axis_types == (AxisType.Auto,) * 3
    assert mesh.devices.shape == (2, 1, 4) and set(mesh.devices.flat) == set(jax.devices())
    assert len(jax.devices()) == 8


def test_a_mesh_takes_the_devices_that_are_given():
    mesh = build_mesh(MeshShape(1, 2, 1), jax.devices()[5:7])
    assert mesh.size == 2 and set(mesh.devices.flat) == set(jax.devices()[5:7])
