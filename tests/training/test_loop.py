"""The training loop: what is kept, what a rerun goes on from, and when it ends."""

import dataclasses
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import in_every_run, tiny_config

from clinmerge_jax.data.documents import Encoded
from clinmerge_jax.data.sequences import Sequences, sequences_of
from clinmerge_jax.errors import BadInput, RunFailure
from clinmerge_jax.llama.lora import LoraSettings
from clinmerge_jax.llama.parameters import init_params
from clinmerge_jax.parallel.layout import make_layout, one_device
from clinmerge_jax.parallel.mesh import MeshShape
from clinmerge_jax.training import batching
from clinmerge_jax.training.batching import Batching
from clinmerge_jax.training.checkpoints import Checkpoints
from clinmerge_jax.training.log import TrainingLog
from clinmerge_jax.training.loop import Interrupted, LoopSettings, train
from clinmerge_jax.training.optimizer import OptimizerSettings
from clinmerge_jax.training.run import Run, name_rows
from clinmerge_jax.training.step import StepSettings

CONFIG = tiny_config(tie_word_embeddings=True)
STEPS = 6
SETTINGS = StepSettings(OptimizerSettings(1e-2, warmup_steps=2), STEPS, dtype=jnp.float32)


def _data(count: int = 10, longest: int = 12) -> Sequences:
    """Examples of several lengths that count upwards in ones or twos."""
    rng = np.random.default_rng(0)
    found = []
    for size in rng.integers(4, longest + 1, count):
        tokens = np.cumsum(rng.integers(1, 3, size)).astype(np.int32) % CONFIG.vocab_size
        found.append([Encoded(tokens, np.arange(size) > 1)])
    return sequences_of(found)


@pytest.fixture(scope="module", autouse=True)
def several_shapes():
    """Programs that cost nothing, so that the runs here go through batches of several shapes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "_CPU", batching._Device(unit=12, at_a_time=24, compiling=0.0))
        assert len({batch.tokens.shape for batch in _run().loader()}) > 1
        yield


def _run(settings=SETTINGS, layout=None) -> Run:
    return Run(layout or one_device(CONFIG), settings, _data(), Batching(4, length=24), seed=3)


def _begin(run: Run):
    return run.begin(init_params(CONFIG, jax.random.key(1)), seed=5)


def _same(one, other) -> bool:
    leaves = jax.tree.leaves(jax.tree.map(lambda a, b: np.array_equal(np.asarray(a), np.asarray(b)), one, other))
    return bool(leaves) and all(leaves)


@pytest.fixture(scope="module")
def undisturbed(several_shapes):
    run = _run()
    return train(_begin(run), run.take, run.loader(), LoopSettings(STEPS)).state


def test_training_lowers_the_loss():
    run, losses = _run(dataclasses.replace(SETTINGS, steps=30)), []
    outcome = train(
        _begin(run), run.take, run.loader(), LoopSettings(30), progress=lambda step, loss: losses.append(loss)
    )
    assert len(losses) == 30 and np.mean(losses[-3:]) < 0.7 * losses[0] and outcome.step == 30
    assert run.loss(_data())(outcome.state) < losses[0]


@pytest.mark.parametrize("told_at", in_every_run([1, 2, 3], lambda told_at: told_at == 2))
def test_a_run_that_was_told_to_stop_ends_as_if_it_had_not_been(tmp_path, undisturbed, told_at):
    def stop(step: int, loss: float) -> None:
        if step == told_at:
            os.kill(os.getpid(), signal.SIGTERM)

    settings = LoopSettings(STEPS, save_every=2)
    before = signal.getsignal(signal.SIGTERM)
    run, checkpoints = _run(), Checkpoints(tmp_path / "steps")
    with pytest.raises(Interrupted, match="run the same command again"):
        train(_begin(run), run.take, run.loader(), settings, checkpoints, progress=stop,
              log=lambda after: TrainingLog(tmp_path / "log", after))  # fmt: skip
    checkpoints.close()
    assert signal.getsignal(signal.SIGTERM) is before
    checkpoints = Checkpoints(tmp_path / "steps")
    assert told_at <= checkpoints.latest() <= told_at + 1  # a step's loss is read after the next one was sent off
    logs = []
    run = _run()
    outcome = train(_begin(run), run.take, run.loader(), settings, checkpoints,
                    log=lambda after: logs.append(TrainingLog(tmp_path / "log", after)) or logs[0])  # fmt: skip
    checkpoints.close()
    assert outcome.step == STEPS and _same(outcome.state, undisturbed)
    assert [row["step"] for row in logs[0].rows] == list(range(1, STEPS + 1))


def test_what_is_kept_is_not_touched_by_the_steps_that_follow(tmp_path):
    run, checkpoints = _run(), Checkpoints(tmp_path / "steps", keep_last=STEPS)
    seen, take = {}, run.take

    def watched(state, batch):
        seen[int(state.step)] = jax.tree.map(lambda leaf: np.array(leaf), state)
        return take(state, batch)  # gives away the memory of the state that is being written

    train(_begin(run), watched, run.loader(), LoopSettings(STEPS, save_every=1), checkpoints)
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), _begin(run))
    assert all(_same(checkpoints.restore(step, like)[0], seen[step]) for step in range(1, STEPS))
    checkpoints.close()


def test_patience_ends_training_and_the_best_step_is_known(tmp_path):
    found = iter([1.0, 3.0, 2.0, 2.5, 2.0, 9.0])  # of the start first
    run, checkpoints = _run(), Checkpoints(tmp_path / "steps", keep_last=1, keep_best=True)
    settings = LoopSettings(STEPS, validate_every=1, patience=2)
    outcome = train(_begin(run), run.take, run.loader(), settings, checkpoints, validate=lambda state: next(found))
    assert (outcome.step, outcome.best_step, outcome.stopped_early) == (4, 4, True)  # of equal ones the last
    again = train(_begin(run), run.take, run.loader(), settings, checkpoints, validate=lambda state: next(found))
    assert (again.step, again.best_step, again.stopped_early) == (4, 4, True)  # no step more
    assert next(found) == 9.0
    checkpoints.close()


def test_a_loss_that_is_not_finite_names_the_documents(tmp_path):
    run = _run()
    params = init_params(CONFIG, jax.random.key(1))
    ids = [f"note-{row}" for row in range(10)]
    poisoned = int(_data().split()[7][1])  # whoever reads this token gets a loss that is no number
    params["embed_tokens"]["weight"] = params["embed_tokens"]["weight"].at[poisoned].set(jnp.nan)
    with pytest.raises(RunFailure, match=r"step 1: the loss of the rows with note-\d") as error:
        train(run.begin(params), run.take, run.loader(), LoopSettings(STEPS), name_rows=name_rows([_data()], [ids]))
    assert "is not finite" in str(error.value)


@pytest.mark.slow  # tests/training/test_sharding.py has one such mesh in every run
def test_eight_devices_train_as_one_does():
    config = dataclasses.replace(CONFIG, num_key_value_heads=CONFIG.num_attention_heads)
    losses = []
    for layout in (one_device(config), make_layout(config, MeshShape(2, 2, 2))):
        run = Run(layout, SETTINGS, _data(16), Batching(16, 8), seed=3)
        state = run.begin(jax.device_put(init_params(config, jax.random.key(1)), layout.shardings()))
        some: list[float] = []
        train(state, run.take, run.loader(), LoopSettings(STEPS), progress=lambda _, loss, some=some: some.append(loss))
        losses.append(some)
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)


@pytest.mark.slow
def test_an_adapter_leaves_the_model_alone():
    run = _run(dataclasses.replace(SETTINGS, lora=LoraSettings(rank=2, dropout=0.1)))
    params = init_params(CONFIG, jax.random.key(1))
    before = jax.tree.map(np.array, params)
    state = run.begin(params)
    shapes = {path[-1].key for path, _ in jax.tree_util.tree_flatten_with_path(state.trained)[0]}
    outcome = train(state, run.take, run.loader(), LoopSettings(STEPS))
    assert shapes == {"lora_a", "lora_b"} and _same(run.frozen, before)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(outcome.state.trained))


@pytest.mark.parametrize(
    "given, named", [((0,), "batch_size"), ((4, -1), "micro_batch"), ((4, 3), "micro_batch"), ((16, 12), "micro_batch")]
)
def test_rows_that_cannot_be_taken_are_refused(given, named):
    with pytest.raises(BadInput, match=f"config.{named}: "):
        Run(make_layout(CONFIG, MeshShape(8, 1, 1)), SETTINGS, _data(), Batching(*given))
