"""Steps of packed examples are those of one example a row; plans follow from the config; batches that are skipped."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import in_every_run, tiny_config
from training_batches import draw_documents, take_step

from clinmerge_jax.data.documents import Encoded
from clinmerge_jax.data.sequences import sequences_of
from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.attention import Backend
from clinmerge_jax.llama.lora import LoraSettings
from clinmerge_jax.llama.parameters import init_params
from clinmerge_jax.parallel.layout import make_layout, one_device
from clinmerge_jax.parallel.mesh import MeshShape
from clinmerge_jax.training import batching
from clinmerge_jax.training.batching import Batching, course, plan_courses
from clinmerge_jax.training.lora import init_adapter
from clinmerge_jax.training.optimizer import OptimizerSettings
from clinmerge_jax.training.run import Run, batches_of
from clinmerge_jax.training.step import StepSettings, init_state

CONFIG = tiny_config(initializer_range=0.2)
STEPS = 4
FULL = StepSettings(OptimizerSettings(1e-2, clip_norm=0.0), STEPS, dtype=jnp.float64, chunk=4)
SETTINGS = {
    "full": FULL,
    "kl": dataclasses.replace(FULL, kl=0.3),
    "lora": dataclasses.replace(FULL, lora=LoraSettings(2, 4.0, targets=("q_proj", "down_proj"))),
}
DOCUMENTS = draw_documents(16, CONFIG.vocab_size, 12) + draw_documents(2, CONFIG.vocab_size, 24, seed=3)
DATA = sequences_of([[Encoded(*document)] for document in DOCUMENTS])

take = functools.partial(take_step, config=CONFIG)


@pytest.fixture
def small_device(monkeypatch):
    """Short rows, small micro-batches and programs that cost nothing, so that a small set has several shapes."""
    monkeypatch.setattr(batching, "_CPU", batching._Device(unit=12, at_a_time=24, compiling=0.0))


def _batches(settings, how):
    return list(Run(one_device(CONFIG), settings, DATA, how, seed=2).loader())


def _step(kind, batch):
    """Gradients and metrics of a first step; the first moment is a tenth of the gradients."""
    settings, params = SETTINGS[kind], init_params(CONFIG, jax.random.key(0, impl="rbg"), jnp.float64)
    trained, frozen, start = params, {}, None
    if settings.lora:
        factors = init_adapter(CONFIG, settings.lora, jax.random.key(1))
        trained, frozen = jax.tree.map(lambda leaf: leaf.astype(jnp.float64) + 0.05, factors), params
    if settings.kl:
        start = jax.tree.map(lambda leaf: leaf * 1.1, params)
    state, metrics = take(init_state(trained, settings), frozen, batch, start, settings=settings)
    return jax.tree.map(lambda leaf: np.asarray(leaf) * 10, optax.tree.get(state.opt_state, "mu")), metrics


@pytest.mark.parametrize("kind", in_every_run(SETTINGS, lambda kind: kind == "lora"))
@jax.enable_x64(True)
def test_examples_side_by_side_have_the_gradients_of_one_a_row(kind, small_device):
    packed = _batches(SETTINGS[kind], Batching(6, length=24))
    single = _batches(SETTINGS[kind], Batching(6, micro_batch=6, alone=True))
    assert len({batch.tokens.shape for batch in packed}) > 1
    skipped = max(range(STEPS), key=lambda step: (~packed[step].segments.any(axis=(1, 2))).sum())
    assert len(packed[skipped].tokens) > 1 and not packed[skipped].segments[-1].any()
    for step in (0, skipped):
        (ours, seen), (theirs, expected) = (_step(kind, batches[step]) for batches in (packed, single))
        assert (seen.targets, seen.tokens) == (expected.targets, expected.tokens)
        assert seen.computed < packed[step].tokens.size or step != skipped
        assert seen.attended == expected.attended
        np.testing.assert_allclose([seen.loss, seen.kl], [expected.loss, expected.kl], rtol=1e-12)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12 * np.abs(b).max(), rtol=0), ours, theirs)


def test_validation_takes_every_sequence_once_in_few_shapes(small_device):
    batches = batches_of(DATA, Batching(5, length=24), FULL, one_device(CONFIG))
    assert sum(int(batch.targets.sum()) for batch in batches) == DATA.targets.sum()
    assert sum(int((batch.segments > 0).sum()) for batch in batches) == len(DATA.tokens)
    assert len({batch.tokens.shape for batch in batches}) <= 4


def test_a_plan_is_the_same_each_time_and_the_line_says_what_it_is(small_device):
    how = Batching(6, length=24, replay=DATA, replay_share=0.25)
    (one, said), (other, _) = (
        plan_courses([course(DATA, how, STEPS, 1)], how, one_device(CONFIG), FULL) for _ in range(2)
    )
    assert one == other and len(one.shapes) > 1
    assert said.startswith("rows x tokens (steps): ") and said.endswith("% of the computed tokens are not padding")
    cut = dataclasses.replace(how, alone=True)
    plan, _ = plan_courses([course(DATA, cut, STEPS, 1)], cut, one_device(CONFIG), FULL)
    assert plan.rules.alone
    cudnn = dataclasses.replace(FULL, attention=Backend.CUDNN)
    assert plan_courses([course(DATA, how, STEPS, 1)], how, one_device(CONFIG), cudnn)[0].rules.alone


def test_runs_of_one_program_have_one_shape_that_holds_them_all(small_device):
    how = Batching(6, length=24)
    courses = [course(DATA, how, steps, seed) for steps, seed in ((3, 0), (5, 1), (2, 2))]
    plan, _ = plan_courses(courses, how, one_device(CONFIG), FULL, together=True)
    (shape,) = plan.shapes
    for one in courses:
        assert all(plan.rows(sizes)[0] == shape for sizes in one.sizes(one.steps))


def test_steps_beyond_those_that_are_looked_at_fit(small_device, monkeypatch):
    monkeypatch.setattr(batching, "_LOOKED_AT", 6)
    how = Batching(6, length=24)
    one = course(DATA, how, 40, 1)
    plan, _ = plan_courses([one], how, one_device(CONFIG), FULL)
    assert all(plan.rows(sizes) for sizes in one.sizes(40))


def test_a_mesh_gets_a_multiple_of_its_parts(small_device):
    layout = make_layout(CONFIG, MeshShape(8, 1, 1))
    plan, _ = plan_courses([course(DATA, Batching(6), STEPS, 1)], Batching(6), layout, FULL)
    assert all(shape.rows % 8 == 0 for shape in plan.shapes)
    with pytest.raises(BadInput, match="config.micro_batch: 12 rows cannot be cut into the mesh's 8 parts"):
        Run(layout, FULL, DATA, Batching(6, micro_batch=12))
