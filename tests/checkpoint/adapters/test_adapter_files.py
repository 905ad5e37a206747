"""LoRA adapters as they are written."""

import json

import numpy as np
import pytest
from support import BF16, TINY, llama_tensors, write_llama

from clinmerge_jax.checkpoint.adapters.adapter import open_adapter
from clinmerge_jax.checkpoint.adapters.adapter_files import config_text, plan_targets, write_weights
from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.output import OutputFolder

QUERY, DOWN, HEAD = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj", "lm_head"


@pytest.fixture
def checkpoint(tmp_path):
    return open_checkpoint(str(write_llama(tmp_path / "model")), "config.model")


def values(target):
    """Any arrays of the shapes that a target stores, and a figure."""
    generator = np.random.default_rng(len(target.name))
    return [generator.normal(size=shape).astype(dtype) for _, dtype, shape in target.stored], float(len(target.name))


def test_what_is_written_is_read_back(tmp_path, checkpoint):
    targets = plan_targets(checkpoint, [f"{name}.weight" for name in (QUERY, DOWN, HEAD)], 3, np.dtype(np.float32))
    assert [target.rank for target in targets] == [3, 3, 0]
    output = OutputFolder(tmp_path / "adapter", {})
    with output:
        output.open()
        done = []
        assert write_weights(targets, values, output, done.append) == {t.name: len(t.name) for t in targets}
        assert sum(done) == 8 * 8 + 8 * 12 + 16 * 8
        output.write_text("adapter_config.json", config_text("x", checkpoint, checkpoint, targets, 3, 6))
        output.commit({})
    adapter = open_adapter(str(tmp_path / "adapter"), "config.adapter")
    adapter.check(checkpoint)
    base = llama_tensors(TINY, 0, BF16)
    for target in targets[:2]:
        (a, b), _ = values(target)
        expected = base[target.name].astype(np.float64) + 2.0 * b.astype(np.float64) @ a
        np.testing.assert_allclose(
            adapter.apply_rows(target.name, 0, base[target.name]), expected, rtol=1e-5, atol=1e-6
        )
    ((head,), _) = values(targets[2])
    assert head.dtype == BF16
    np.testing.assert_array_equal(adapter.apply_rows(f"{HEAD}.weight", 0, base[f"{HEAD}.weight"]), head)


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_interrupted_file_goes_on_with_the_tensor_that_was_begun(tmp_path, checkpoint, failing):
    targets = plan_targets(checkpoint, [f"{name}.weight" for name in (QUERY, DOWN, HEAD)], 3, np.dtype(np.float32))
    made = []

    def interrupted(target):
        made.append(target)
        if len(made) == failing + 1:
            raise KeyboardInterrupt
        return values(target)

    contents = []
    for name in ("whole", "halves"):
        with OutputFolder(tmp_path / name, {}) as output:
            output.open()
            output.write_journal({"another": 1})
            if name == "halves":
                with pytest.raises(KeyboardInterrupt):
                    write_weights(targets, interrupted, output)
                made.clear()
                write_weights(targets, lambda target: made.append(target) or values(target), output)
                assert made == targets[failing:]
            else:
                write_weights(targets, values, output)
            assert output.read_journal()["another"] == 1
            contents.append(output.path("adapter_model.safetensors").read_bytes())
    assert contents[0] == contents[1]


def test_a_pattern_of_ranks_is_short_only_where_it_fits_all_that_it_names(checkpoint):
    names = [name for name, entry in checkpoint.tensors.items() if "layers" in name and len(entry.shape) == 2]
    targets = plan_targets(checkpoint, names, 6, np.dtype(np.float32))  # key and value matrices have 4 rows
    content = json.loads(config_text("x", checkpoint, checkpoint, targets, 6, 12))
    assert content["rank_pattern"] == {"self_attn.k_proj": 4, "self_attn.v_proj": 4}
    assert content["alpha_pattern"] == {"self_attn.k_proj": 8, "self_attn.v_proj": 8}
    assert content["modules_to_save"] is None and "q_proj" in content["target_modules"]
