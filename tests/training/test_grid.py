"""A grid of runs trains each as it is trained alone, over eight devices or on one, whatever runs beside it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import in_every_run, tiny_config

from clinmerge_jax.data.documents import Encoded
from clinmerge_jax.data.sequences import Sequences, sequences_of
from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.lora import LoraSettings
from clinmerge_jax.llama.parameters import init_params
from clinmerge_jax.parallel.layout import one_device
from clinmerge_jax.training.batching import Batching
from clinmerge_jax.training.grid import Grid, Member, pick_slots, replicas
from clinmerge_jax.training.log import TrainingLog
from clinmerge_jax.training.loop import LoopSettings, train
from clinmerge_jax.training.optimizer import OptimizerSettings
from clinmerge_jax.training.run import Run, name_rows
from clinmerge_jax.training.step import StepSettings

CONFIG = tiny_config(tie_word_embeddings=True)
OPTIMIZER = OptimizerSettings(1e-2, warmup_steps=2, weight_decay=0.01)
LORA = LoraSettings(rank=2, dropout=0.2, targets=("q_proj", "down_proj"))
SETTINGS = {
    "full": StepSettings(OPTIMIZER, 1, dtype=jnp.float32, l2=0.01),
    "lora": StepSettings(OPTIMIZER, 1, dtype=jnp.float32, lora=LORA),
}
ROWS = Batching(4, 2, length=16)


def _data(count: int, seed: int, longest: int = 12) -> Sequences:
    rng = np.random.default_rng(seed)
    rows = [rng.integers(2, CONFIG.vocab_size, size).astype(np.int32) for size in rng.integers(4, longest + 1, count)]
    return sequences_of([[Encoded(row, np.arange(len(row)) > 0)] for row in rows])


# Two seeds of two lengths, one of another rate, and more than there are slots; no two learn the same rows.
MEMBERS = [
    Member(f"{steps} steps, seed {seed}", _data(2 * steps, seed), steps, seed, rate)
    for steps, seed, rate in [
        (3, 0, 1e-2), (6, 0, 1e-2), (3, 1, 1e-2), (6, 1, 1e-2), (5, 2, 3e-2), *((2, seed, 1e-2) for seed in range(3, 8))
    ]
]  # fmt: skip


def _params():
    return init_params(CONFIG, jax.random.key(1))


def _grid(kind: str, slots: int, devices: int, members=MEMBERS):
    """The grid, what each member has trained and the log of its steps, and what failed."""
    grid, found = Grid(replicas(CONFIG, devices), SETTINGS[kind], ROWS, slots, MEMBERS), {}

    def finish(member, trained, log):
        found[member.name] = jax.tree.map(np.asarray, trained), log

    grid.begin(jax.device_put(_params(), grid.layout.shardings()))
    return grid, found, grid.train(members, finish)


@pytest.fixture(scope="module", params=in_every_run(["full", "lora"], lambda kind: False))
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def alone(kind, tmp_path_factory):
    found, folder = {}, tmp_path_factory.mktemp("logs")
    for number, member in enumerate(MEMBERS[:5]):
        settings = dataclasses.replace(SETTINGS[kind], steps=member.steps)
        run = Run(one_device(CONFIG), settings, member.data, ROWS, member.seed)
        state = run.begin(_params(), seed=member.seed)
        state = dataclasses.replace(state, learning_rate=jnp.float32(member.learning_rate))
        log = TrainingLog(folder / str(number))
        state = train(state, run.take, run.loader(), LoopSettings(member.steps), log=lambda _, log=log: log).state
        found[member.name] = jax.tree.map(np.asarray, state.trained), log.rows
    return found


@pytest.fixture(scope="module")
def together(kind):
    return _grid(kind, 8, 8)


def _assert_same(found, expected):
    for name in expected:
        trained, log = found[name]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=5e-6), trained, expected[name][0])
        for key in ("step", "loss", "targets", "gradient_norm", "learning_rate", "kl"):
            np.testing.assert_allclose(
                [row[key] for row in log], [row[key] for row in expected[name][1]], rtol=1e-5, err_msg=f"{name} {key}"
            )


def test_each_run_is_trained_as_it_is_alone(together, alone):
    _, found, failures = together
    assert not failures and len(found) == len(MEMBERS)
    _assert_same(found, alone)
    assert len({log[-1]["loss"] for _, log in found.values()}) == len(MEMBERS)


@pytest.mark.slow
def test_so_it_is_on_one_device(kind, alone):
    _, found, failures = _grid(kind, 3, 1)
    assert not failures and len(found) == len(MEMBERS)
    _assert_same(found, alone)


def test_a_run_has_the_same_bits_whatever_runs_beside_it(kind, together):
    _, found, _ = _grid(kind, 8, 8, members=MEMBERS[3:1:-1])
    assert len(found) == 2
    for name, (trained, _) in found.items():
        jax.tree.map(np.testing.assert_array_equal, trained, together[1][name][0])


def test_the_loss_of_a_finished_run_is_that_of_its_weights(kind, together):
    grid, found, _ = together
    trained, _ = found[MEMBERS[1].name]
    data = _data(5, 9)
    run = Run(one_device(CONFIG), SETTINGS[kind], data, ROWS)
    state = dataclasses.replace(run.begin(_params()), trained=trained)
    assert grid.loss(trained, data) == pytest.approx(run.loss(data)(state), rel=1e-6)


def test_a_run_that_fails_is_named_with_its_documents_and_the_others_go_on(kind, together):
    ids = [f"note-{row}" for row in range(12)]
    poisoned = dataclasses.replace(MEMBERS[1], learning_rate=np.inf, name_rows=name_rows([MEMBERS[1].data], [ids]))
    _, found, failures = _grid(kind, 8, 8, [MEMBERS[0], poisoned, *MEMBERS[2:]])
    (line,) = failures.values()
    assert line.startswith("6 steps, seed 0: step 2: the loss of the rows with note-") and "is not finite" in line
    assert found.keys() == {member.name for member in MEMBERS} - {poisoned.name}
    for name, (trained, _) in found.items():
        jax.tree.map(np.testing.assert_array_equal, trained, together[1][name][0])


@pytest.mark.parametrize(("runs", "devices", "slots"), [(32, 1, 8), (3, 1, 3), (32, 8, 32), (3, 8, 8), (100, 8, 64)])
def test_slots_are_a_multiple_of_the_devices(runs, devices, slots):
    assert pick_slots(runs, devices) == slots


def test_slots_that_devices_cannot_share_are_refused():
    with pytest.raises(BadInput, match=r"config.grid.at_once: 3 runs"):
        Grid(replicas(CONFIG, 2), SETTINGS["full"], ROWS, 3, MEMBERS)
    with pytest.raises(BadInput, match=r"config.mesh.data: is 9 with 8 devices"):
        replicas(CONFIG, 9)
