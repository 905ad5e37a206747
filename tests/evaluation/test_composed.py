"""Systems composed in memory: a merge is that of the merge job, and a random change has the norm of the real one."""

import json
import shutil

import jax
import numpy as np
import pytest
from support import TINY, llama_tensors, run_command, write_llama

from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.parameters.params import load_params
from clinmerge_jax.errors import BadInput
from clinmerge_jax.evaluation.composed import parse_composition
from clinmerge_jax.evaluation.systems import parse_systems
from clinmerge_jax.llama.parameters import iterate_params
from clinmerge_jax.parallel.layout import one_device


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate("abc"):
        write_llama(root / name, dtype=np.float32, tensors=llama_tensors(TINY, seed, np.float32), **TINY)
    return {name: str(root / name) for name in "abc"}


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Models that do not go with those of `models`, or with the miniature."""
    root = tmp_path_factory.mktemp("others")
    wide = {**TINY, "intermediate_size": 2 * TINY["intermediate_size"]}
    theta = {**TINY, "rope_theta": 123.0}
    for name, config in (("wide", wide), ("theta", theta)):
        write_llama(root / name, dtype=np.float32, tensors=llama_tensors(config, 0, np.float32), **config)
    shutil.copytree(open_checkpoint("miniature:instruct", "x").path, root / "tokens")
    path = root / "tokens" / "tokenizer.json"
    vocabulary = json.loads(path.read_text())
    ids = vocabulary["model"]["vocab"]
    first, second = list(ids)[300:302]
    ids[first], ids[second] = ids[second], ids[first]
    path.write_text(json.dumps(vocabulary))
    return {name: str(root / name) for name in ("wide", "theta", "tokens")}


def _composed(location):
    composition = parse_composition(location, "config.model")
    config, _ = load_params(composition.models[0])
    return composition, composition.params(one_device(config), np.float32)


def _leaves(location):
    config, params = load_params(open_checkpoint(location, "model"))
    return {row.name: np.asarray(leaf) for row, leaf in iterate_params(params, config)}, config


def test_a_composed_merge_is_the_weighted_mean(models):
    a, config = _leaves(models["a"])
    b, _ = _leaves(models["b"])
    _, (found,) = _composed(f"linear({models['a']},{models['b']},t=0.25)")
    for row, leaf in iterate_params(found, config):
        np.testing.assert_allclose(leaf, 0.75 * a[row.name] + 0.25 * b[row.name], rtol=1e-6, atol=1e-7)


def test_task_arithmetic_takes_the_base(models):
    a, config = _leaves(models["a"])
    b, c = _leaves(models["b"])[0], _leaves(models["c"])[0]
    _, (found,) = _composed(f"task_arithmetic({models['a']},{models['b']},{models['c']},weight=1,lambda=0.5)")
    for row, leaf in iterate_params(found, config):
        name = row.name
        np.testing.assert_allclose(leaf, c[name] + 0.5 * (a[name] + b[name] - 2 * c[name]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("base", ["", "c"])
def test_a_random_change_has_the_norm_of_the_real_one_in_each_tensor(models, base):
    a, config = _leaves(models["a"])
    b, start = _leaves(models["b"])[0], _leaves(models[base or "a"])[0]
    given = ",".join([models["a"], models["b"], *([models[base]] if base else []), "t=0.5", "seed=3"])
    _, (found,) = _composed(f"random_delta({given})")
    for row, leaf in iterate_params(found, config):
        change, real = np.asarray(leaf) - a[row.name], b[row.name] - start[row.name]
        axes = tuple(range(1 if row.stacked else 0, real.ndim))
        np.testing.assert_allclose(
            np.sqrt((change**2).sum(axes)), 0.5 * np.sqrt((real**2).sum(axes)), rtol=1e-3, err_msg=row.name
        )
        if real.size > 200:
            cosine = (change * real).sum() / np.linalg.norm(change) / np.linalg.norm(real)
            assert abs(cosine) < 5 / np.sqrt(real.size)


def test_a_random_change_depends_on_its_seed_alone(models):
    pair = f"{models['a']},{models['b']}"
    one, same, other = (jax.tree.leaves(_composed(f"random_delta({pair},seed={seed})")[1][0]) for seed in (1, 1, 2))
    assert all(np.array_equal(x, y) for x, y in zip(one, same))
    assert not any(np.array_equal(x, y) for x, y in zip(one, other))


def test_an_ensemble_keeps_both_models(models):
    composition, both = _composed(f"ensemble({models['a']},{models['b']},t=0.25)")
    assert composition.weights == (0.75, 0.25)
    for params, name in zip(both, "ab"):
        expected, config = _leaves(models[name])
        for row, leaf in iterate_params(params, config):
            np.testing.assert_array_equal(leaf, expected[row.name])


def test_items_are_shared_out_by_id_seed_and_t(models):
    def answerers(spelled, ids):
        return parse_composition(f"either({models['a']},{models['b']}{spelled})", "config.model").answerers(ids)

    ids = [f"item {index}" for index in range(2000)]
    half = answerers("", ids)
    assert 0.45 < np.mean(half) < 0.55 and 0.15 < np.mean(answerers(",t=0.2", ids)) < 0.25
    assert answerers("", ids[::-1]) == half[::-1] and answerers(",seed=1", ids) != half
    assert parse_composition(f"linear({models['a']},{models['b']})", "x").answerers(ids[:3]) == [0, 0, 0]


def test_either_gives_the_answers_of_its_models(repository, tmp_path):
    pair = "miniature:instruct,miniature:clinical"
    arguments = [
        f"--config={repository}/configs/evaluate.py",
        "--config.tasks=miniature_section@dev",
        "--config.limit=8",
        "--config.max_new_tokens=6",
        "--config.save_generations=True",
        f"--config.model=instruct=miniature:instruct,clinical=miniature:clinical,mean=either({pair},seed=3)",
        f"--config.output={tmp_path / 'results'}",
    ]
    assert run_command(*arguments) == 0
    found = {}
    for path in (tmp_path / "results" / "generations").glob("*/*.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.parent.name.split("_")[0]] = {row["id"]: row["answer"] for row in rows}
    instruct, clinical, mean = (found[name] for name in ("instruct", "clinical", "mean"))
    assert len(mean) == 8 and instruct != clinical
    chosen = parse_composition(f"either({pair},seed=3)", "config.model").answerers(list(mean))
    assert set(chosen) == {0, 1}
    for one, answerer in zip(mean, chosen):
        assert mean[one] == (instruct, clinical)[answerer][one]


def _scores(tmp_path, repository, systems):
    """The scores of systems by task, of a few short answers and of choices by letters."""
    arguments = [
        f"--config={repository}/configs/evaluate.py",
        "--config.tasks=miniature_section@dev,miniature_questions@dev",
        "--config.choices=letters",
        "--config.dtype=float32",
        "--config.limit=8",
        "--config.max_new_tokens=6",
        "--config.save_generations=True",
        "--config.model=" + ",".join(f"{name}={place}" for name, place in systems.items()),
        f"--config.output={tmp_path / 'results'}",
    ]
    assert run_command(*arguments) == 0
    lines = [json.loads(line) for line in (tmp_path / "results" / "results.jsonl").read_text().splitlines()]
    scores: dict = {name: {} for name in systems}
    for line in lines:
        if not line["cell"]["floor"]:
            scores[line["cell"]["system"]][line["cell"]["task"]] = (line["scores"], line["counts"])
    texts = {}
    for path in (tmp_path / "results" / "generations").glob("*/*.jsonl"):
        texts[path.parent.name.split("_")[0]] = path.read_text()
    return scores, texts


def test_a_composed_merge_answers_as_its_folder_does(repository, tmp_path):
    pair = "miniature:instruct,miniature:clinical"
    merge = [f"--config={repository}/configs/merge.py", "--config.evaluate=", "--config.t=0.3"]
    assert run_command(*merge, "--config.dtype=float32", f"--config.output={tmp_path / 'merged'}") == 0
    scores, texts = _scores(tmp_path, repository, {"folder": tmp_path / "merged", "memory": f"linear({pair},t=0.3)"})
    assert scores["folder"] == scores["memory"] and len(scores["folder"]) == 2
    assert texts["folder"] == texts["memory"]


def test_the_logits_of_an_ensemble_are_those_of_its_models_and_either_scores_choices(repository, tmp_path):
    same = "miniature:clinical,miniature:clinical"
    pair = "miniature:instruct,miniature:clinical"
    systems = {
        "clinical": "miniature:clinical",
        "instruct": "miniature:instruct",
        "twice": f"ensemble({same})",
        "all": f"ensemble({pair},t=1)",
        "none": f"either({pair},t=0)",
        "mixed": f"ensemble({pair})",
    }
    scores, texts = _scores(tmp_path, repository, systems)
    assert scores["twice"] == scores["all"] == scores["clinical"] and texts["all"] == texts["clinical"]
    assert scores["none"] == scores["instruct"] != scores["clinical"]
    assert texts["mixed"] not in (texts["instruct"], texts["clinical"])


def test_systems_are_named_and_told_apart(models):
    a, b = models["a"], models["b"]
    assert [one.name for one in parse_systems(f"m(2)=linear({a},{b})")] == ["m(2)"]
    systems = parse_systems(f"{a},mixed=linear({a},{b},t=0.3),linear({a},{b},t=0.7),ensemble:chat=ensemble({a},{b})")
    assert [system.name for system in systems] == ["a", "mixed", "linear(a, b, t=0.7)", "ensemble"]
    assert systems[3].chat is True
    prints = [str(system.fingerprint("task")) for system in systems]
    assert len(set(prints)) == 4
    assert a not in "".join(prints)
    assert list(systems[1].digests()) == ["model 0", "model 1"]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("lineal({a},{b})", "'lineal' is unknown; choose from random_delta, ensemble, either, linear"),
        ("linear({a})", "names 1 models; give two models, or three with the base"),
        ("linear({a},{a})", "names a model twice"),
        ("linear({a},{b},{c})", "linear takes no base; leave it out"),
        ("ensemble({a},{b},{c})", "names 3 models; give two models"),
        ("ensemble({a},{b},t=much)", "t is 'much'; give a number"),
        ("random_delta({a},{b},lambda=1)", "'lambda' is unknown; choose from t, seed"),
        ("linear({a},{b},seed=x)", "seed is 'x'; give a whole number"),
        ("linear({a},{b},density=.5)", "density"),
        ("linear({a},{b},density=.5)", "linear({a},{b},density=.5): "),
        ("linear({a},nowhere)", "nowhere"),
        ("either({a},{b},t=nan)", "t is nan; give a number"),
        ("either({a},{b},t=7)", "t is 7; give a number from 0 to 1"),
        ("ensemble({a},{b},t=-1)", "t is -1; give a number from 0 to 1"),
        ("random_delta({a},{b},t=-1)", "t is -1; give a number from 0 on"),
        ("random_delta({a},{wide})", "shape"),
        ("either({a},{wide})", "shape"),
        ("either({a},{theta})", "the models differ in rope in config.json; give models of one config"),
        ("ensemble({a},{theta})", "the models differ in rope in config.json; give models of one config"),
        ("ensemble(miniature:clinical,{tokens})", "give models of one vocabulary"),
        ("random_delta(miniature:clinical,{tokens})", "give models of one vocabulary"),
    ],
)
def test_compositions_that_cannot_be_are_refused(models, others, spec, reason):
    places = {**models, **others}
    with pytest.raises(BadInput) as error:
        parse_systems(f"one={spec.format(**places)}")
    assert reason.format(**places) in str(error.value) and "\n" not in str(error.value)
