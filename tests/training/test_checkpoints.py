"""Training states on disk."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding

from clinmerge_jax.training.checkpoints import Checkpoints, abstract


def _state(step: int):
    params = {"w": jnp.arange(8.0) + step, "n": jnp.ones((4, 2), jnp.bfloat16) * step}
    return {"step": jnp.int32(step), "params": params, "moments": optax.adamw(1e-3).init(params)}


def _same(one, other) -> bool:
    leaves = jax.tree.leaves(jax.tree.map(lambda a, b: a.dtype == b.dtype and np.array_equal(a, b), one, other))
    return bool(leaves) and all(leaves)


def test_a_state_comes_back_bit_for_bit_with_its_position(tmp_path):
    checkpoints = Checkpoints(tmp_path / "steps")
    assert checkpoints.latest() is None
    checkpoints.save(3, _state(3), {"rows": [1, 2], "epoch": 0})
    checkpoints.close()
    again = Checkpoints(tmp_path / "steps")
    assert again.latest() == 3
    state, position = again.restore(3, abstract(_state(0)))
    assert _same(state, _state(3)) and position == {"rows": [1, 2], "epoch": 0}
    assert jax.tree.structure(state) == jax.tree.structure(_state(0))
    again.close()


def test_the_last_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path / "steps", keep_last=2, keep_best=True)
    for step, loss in enumerate([3.0, 1.0, None, 2.0, 1.5, 5.0]):
        checkpoints.save(step, _state(step), {}, loss)
    checkpoints.wait()
    assert sorted(int(path.name) for path in (tmp_path / "steps").iterdir() if path.name.isdigit()) == [1, 4, 5]
    assert checkpoints.latest() == 5
    checkpoints.close()


def test_a_state_is_restored_onto_another_mesh(tmp_path):
    def placed(shape):
        mesh = jax.make_mesh(shape, ("a", "b"), axis_types=(AxisType.Auto, AxisType.Auto))
        values = np.arange(64.0, dtype=np.float32).reshape(8, 8)
        return {"w": jax.device_put(values, NamedSharding(mesh, jax.P("a", "b")))}

    checkpoints = Checkpoints(tmp_path / "steps")
    checkpoints.save(1, placed((4, 2)), {})
    state, _ = checkpoints.restore(1, abstract(placed((2, 4))))
    assert state["w"].sharding == placed((2, 4))["w"].sharding
    assert _same(state, placed((2, 4)))
    checkpoints.close()


@pytest.mark.parametrize("left", ["5.orbax-checkpoint-tmp", "5.orbax-checkpoint-tmp-1700000000000000"])
def test_what_was_half_written_is_no_state(tmp_path, left):
    checkpoints = Checkpoints(tmp_path / "steps")
    checkpoints.save(4, _state(4), {})
    checkpoints.close()
    half = tmp_path / "steps" / left
    half.mkdir()
    (half / "state").write_text("")
    again = Checkpoints(tmp_path / "steps")
    assert again.latest() == 4
    again.close()
