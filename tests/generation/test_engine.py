"""The decode engine against transformers: the same greedy tokens and log-likelihoods, whatever slots and mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import support
import torch
import transformers
from support import TINY, in_every_run, llama_tensors, write_llama

from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.parameters.params import load_params
from clinmerge_jax.checkpoint.tokenizers.tokenizer import load_tokenizer
from clinmerge_jax.data.miniature import corpus
from clinmerge_jax.data.prompts import Prompt, encode_prompt
from clinmerge_jax.errors import BadInput
from clinmerge_jax.generation import memory, programs
from clinmerge_jax.generation.engine import Engine, Request
from clinmerge_jax.generation.sampling import Sampling
from clinmerge_jax.llama.cache import quantize
from clinmerge_jax.llama.model import forward
from clinmerge_jax.parallel.layout import Layout, one_device
from clinmerge_jax.parallel.mesh import MeshShape, build_mesh

CONTEXT = 96
NEW = 12
NEAR = 1e-4  # a first difference counts as a tie where the two likeliest logits are closer
SHAPES = [
    {"num_attention_heads": 8, "num_key_value_heads": 8, "hidden_size": 32},
    {"num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 32, "tie_word_embeddings": True},
    {"num_attention_heads": 4, "num_key_value_heads": 1, "hidden_size": 24, "head_dim": 10, "num_hidden_layers": 3},
    {
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "hidden_size": 32,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 24,
        },
    },
]
COMMON = {"vocab_size": 61, "intermediate_size": 48, "max_position_embeddings": CONTEXT, "eos_token_id": None}


@functools.cache
def _model(seed, folder):
    """A random Llama of ours and the same in transformers."""
    path = folder / f"model-{seed}"
    config = {**TINY, **COMMON, **SHAPES[seed % len(SHAPES)]}
    # Logits of a trained model's size: float32 rounds those of unit normal weights by more than the limits here.
    tensors = {name: np.float32(0.3) * x for name, x in llama_tensors(config, seed, np.float32).items()}
    write_llama(path, dtype=np.float32, tensors=tensors, **config)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return open_checkpoint(str(path), "model"), theirs.eval()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return functools.partial(_model, folder=tmp_path_factory.mktemp("models"))


def _prompts(seed, count=7, longest=40):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, COMMON["vocab_size"], length) for length in rng.integers(1, longest, count)]


def _engine(checkpoint, mesh=(1, 1, 1), **settings):
    shape = MeshShape(*mesh)
    layout = Layout(build_mesh(shape, jax.devices()[: shape.size]), load_params(checkpoint)[0])
    _, params = load_params(checkpoint, mesh=layout.mesh)
    return Engine(layout, params, **{"slots": 4, "length": 64, "chunks": (4, 16), **settings})


def _generate(engine, requests):
    found = dict(engine.generate(requests))
    assert sorted(found) == list(range(len(requests)))
    return [found[index] for index in range(len(requests))]


def _theirs(model, prompt, new=NEW, eos=None, **more):
    given = torch.tensor(prompt)[None]
    with torch.no_grad():
        tokens = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=eos,
            pad_token_id=0,
            **more,
        )
    return tokens[0, len(prompt) :].numpy()


def _margin(model, tokens):
    """How far the two likeliest next tokens are apart."""
    with torch.no_grad():
        top = model(torch.tensor(np.array(tokens, np.int64))[None]).logits[0, -1].topk(2).values
    return float(top[0] - top[1])


@pytest.fixture(autouse=True)
def precise():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.mark.parametrize("seed", in_every_run(range(20), lambda seed: seed < 2))
def test_greedy_tokens_are_transformers(model, figures, seed):
    checkpoint, theirs = model(seed)
    prompts = _prompts(seed)  # some longer than a chunk
    engine = _engine(checkpoint)
    answers = _generate(engine, [Request(prompt, NEW) for prompt in prompts])
    ties = 0
    for prompt, answer in zip(prompts, answers):
        expected = _theirs(theirs, prompt)
        differ = np.flatnonzero(answer.tokens != expected)
        if differ.size:
            assert _margin(theirs, [*prompt, *expected[: differ[0]]]) < NEAR
            ties += 1
    if ties:
        figures.append(f"random Llama {seed}: {ties} of {len(prompts)} greedy answers part at a tie under {NEAR}")


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(8, 1, 1), (1, 1, 8), (2, 2, 2), (1, 8, 1)])
def test_meshes_give_the_same_tokens(model, mesh):
    checkpoint, _ = model(0)
    requests = [Request(prompt, NEW) for prompt in _prompts(3, count=11)]
    alone = _generate(_engine(checkpoint, slots=8), requests)
    cut = _generate(_engine(checkpoint, mesh, slots=8), requests)
    for one, two in zip(alone, cut):
        np.testing.assert_array_equal(one.tokens, two.tokens)


def test_stop_ids_end_an_answer_and_are_not_part_of_it(model):
    checkpoint, theirs = model(1)
    prompts = _prompts(5)
    stop = int(_theirs(theirs, prompts[0])[4])
    answers = _generate(_engine(checkpoint, stop_ids=[stop, 60]), [Request(prompt, 30) for prompt in prompts])
    for prompt, answer in zip(prompts, answers):
        expected = _theirs(theirs, prompt, 30, [stop, 60])
        by_id = expected[-1] in (stop, 60)
        np.testing.assert_array_equal(answer.tokens, expected[: len(expected) - by_id])
        assert answer.finished == by_id
    assert any(answer.finished for answer in answers)


def test_limits_are_each_requests_own(model):
    checkpoint, theirs = model(0)
    prompts = _prompts(7)
    limits = [1, 2, 3, 20, 5, 1, 9]
    answers = _generate(_engine(checkpoint), [Request(p, limit) for p, limit in zip(prompts, limits)])
    assert [len(answer.tokens) for answer in answers] == limits
    for prompt, limit, answer in zip(prompts, limits, answers):
        np.testing.assert_array_equal(answer.tokens, _theirs(theirs, prompt, limit))


@pytest.mark.slow
def test_a_prefix_that_all_share_is_read_once(model):
    checkpoint, theirs = model(2)
    prefix = np.random.default_rng(0).integers(0, 61, 21)
    prompts = [np.concatenate([prefix, prompt]) for prompt in _prompts(9, longest=15)]
    counts = []
    for share in (True, False):
        engine = _engine(checkpoint, share_prefix=share)
        for prompt, answer in zip(prompts, _generate(engine, [Request(prompt, NEW) for prompt in prompts])):
            np.testing.assert_array_equal(answer.tokens, _theirs(theirs, prompt))
        counts.append(engine.counts.prompt_tokens)
    assert counts[0] <= counts[1] - (len(prompts) - 1) * len(prefix)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.9}, {"temperature": 1.2, "top_k": 9, "top_p": 0.9}])
def test_a_rows_tokens_do_not_depend_on_its_mates(model, sampling):
    """In slot 0 of the same engine, alone or beside others of any length and settings."""
    checkpoint, _ = model(0)
    mine = Request(np.arange(30), 20, Sampling(seed=5, **sampling))  # the longest, so it takes the first slot
    engine = _engine(checkpoint)
    alone = _generate(engine, [mine])[0].tokens
    for seed in range(3):
        mates = [Request(prompt, 25, Sampling(seed=seed, **sampling)) for prompt in _prompts(seed, 9, 29)]
        np.testing.assert_array_equal(_generate(engine, [mine, *mates])[0].tokens, alone)
    if sampling:
        other = Request(mine.tokens, 20, Sampling(seed=6, **sampling))
        assert (_generate(engine, [other])[0].tokens != alone).any()


def test_repetition_penalties_are_transformers(model):
    checkpoint, theirs = model(1)
    prompts = _prompts(11)
    requests = [Request(prompt, NEW, Sampling(repetition_penalty=1.5)) for prompt in prompts]
    for prompt, answer in zip(prompts, _generate(_engine(checkpoint), requests)):
        np.testing.assert_array_equal(answer.tokens, _theirs(theirs, prompt, repetition_penalty=1.5))


def test_a_request_can_end_by_what_it_has_said(model):
    checkpoint, _ = model(0)
    prompts = _prompts(13, longest=30)
    plain = _generate(_engine(checkpoint), [Request(prompt, 30) for prompt in prompts])
    requests = [Request(prompt, 30, stopped=lambda tokens: len(tokens) >= 6) for prompt in prompts]
    for whole, answer in zip(plain, _generate(_engine(checkpoint), requests)):
        assert answer.finished and 6 <= len(answer.tokens) <= 30
        np.testing.assert_array_equal(answer.tokens, whole.tokens[: len(answer.tokens)])


def _log_likelihood(model, context, continuation):
    with torch.no_grad():
        logits = model(torch.tensor(np.concatenate([context, continuation]))[None]).logits[0].double()
    logs = torch.log_softmax(logits, -1).numpy()
    places = len(context) - 1 + np.arange(len(continuation))
    return logs[places, continuation], logs[places].argmax(-1) == continuation


@pytest.mark.parametrize("seed", in_every_run(range(4), lambda seed: seed == 1))
def test_log_likelihoods_are_transformers(model, figures, seed):
    checkpoint, theirs = model(seed)
    rng = np.random.default_rng(seed)
    contexts = _prompts(seed, 6, 30)
    pairs = [(context, rng.integers(0, 61, length)) for context in contexts for length in rng.integers(1, 25, 4)] + [
        (contexts[0], np.zeros(0, np.int64))
    ]  # several continuations of each context, and an empty one
    largest = 0.0
    for (context, continuation), (logs, greedy) in zip(pairs, _engine(checkpoint).score(pairs)):
        expected, likeliest = _log_likelihood(theirs, context, continuation)
        assert logs.shape == (len(continuation),)
        if len(continuation):
            largest = max(largest, float(np.abs(logs - expected).max()))
        np.testing.assert_array_equal(greedy, likeliest)
    figures.append(f"random Llama {seed}: largest difference of a log-likelihood from transformers {largest:.1e} nats")
    assert largest < 1e-4


def test_the_last_token_of_a_continuation_needs_no_place(model):
    checkpoint, theirs = model(0)
    engine, tokens = _engine(checkpoint), np.random.default_rng(0).integers(0, 61, 66)
    ((logs, _),) = engine.score([(tokens[:40], tokens[40:65])])  # 65 tokens, of which 64 are read
    np.testing.assert_allclose(logs, _log_likelihood(theirs, tokens[:40], tokens[40:65])[0], atol=1e-4)
    with pytest.raises(BadInput, match="40 tokens and 25 new ones exceed the 64"):
        engine.score([(tokens[:40], tokens[40:])])


def test_a_shared_context_is_read_once(model):
    checkpoint, _ = model(0)
    engine = _engine(checkpoint)
    context = np.arange(20)
    engine.score([(context, np.array([letter])) for letter in range(4)])
    assert engine.counts.prompt_tokens == 19


def test_other_lengths_and_settings_compile_nothing(model, figures):
    checkpoint, _ = model(0)
    engine = _engine(checkpoint)
    rng = np.random.default_rng(0)

    def some(count):
        kinds = [Sampling(temperature=0.5 + rng.random(), top_p=0.9, seed=int(rng.integers(99))) for _ in range(count)]
        return [Request(rng.integers(0, 61, rng.integers(1, 40)), int(rng.integers(1, 24)), kind) for kind in kinds]

    for length in (3, 12, 40):  # warm-up: every chunk, with and without a shared prefix
        _generate(engine, [Request(np.arange(length), 2, Sampling(temperature=1.0, top_p=0.5))] * 6)
    compiled = (programs.read_chunk, programs.begin, programs.decode, programs.end, programs.row_of, programs.spread)
    before = [program._cache_size() for program in compiled]
    _generate(engine, some(200))
    assert [program._cache_size() for program in compiled] == before
    figures.append(f"engine, 200 random prompts over 4 slots: {engine.counts.live_share:.1%} of decoded rows were live")


def test_slots_stay_busy_on_a_queue_of_geometric_lengths(model, figures):
    checkpoint, _ = model(0)
    rng = np.random.default_rng(1)
    lengths = np.minimum(rng.geometric(1 / 16, 400), 40)
    requests = [Request(rng.integers(0, 61, 8), int(length)) for length in lengths]
    engine = _engine(checkpoint, slots=16)
    _generate(engine, requests)
    share = engine.counts.live_share
    # Without refilling, 16 answers take as many steps as the longest; the first token of each comes from the prefill.
    steps_NS = lengths.reshape(-1, 16) - 1
    alone = steps_NS.sum() / (16 * steps_NS.max(axis=1).sum())
    figures.append(
        f"engine, answers of geometric length over 16 slots: {share:.1%} of decoded rows live"
        f" ({alone:.1%} without refilling)"
    )
    assert share > 0.85 > alone


@pytest.mark.parametrize(
    ("request_", "problem"),
    [
        (Request(np.zeros(0, np.int32), 4), "request 0: is empty"),
        (Request(np.arange(60), 10), "60 tokens and 10 new ones exceed the 64"),
        (Request(np.arange(4), 0), "config.max_new_tokens: is 0"),
    ],
)
def test_requests_that_do_not_fit_are_refused_before_any_runs(model, request_, problem):
    engine = _engine(model(0)[0])
    with pytest.raises(BadInput, match=problem):
        next(iter(engine.generate([request_, Request(np.arange(3), 2)])))
    assert engine.counts.prompt_tokens == 0


def test_engines_that_cannot_be_are_refused(model, monkeypatch):
    checkpoint, _ = model(0)
    with pytest.raises(BadInput, match="config.length: 500 tokens .* do not fit the model's context of 96"):
        _engine(checkpoint, length=500)
    with pytest.raises(BadInput, match="config.slots: is 6; give a multiple of 8"):
        _engine(checkpoint, (8, 1, 1), slots=6)
    monkeypatch.setattr(memory, "_available_memory", lambda: 1e5)
    with pytest.raises(BadInput, match="config.slots: a cache of 64 slots of 64 tokens takes .* GB free; give 3$"):
        _engine(checkpoint, slots=64)


@pytest.mark.slow
def test_computations_may_run_in_bfloat16(model):
    checkpoint, _ = model(0)
    layout = Layout(build_mesh(MeshShape(1, 1, 1), jax.devices()[:1]), load_params(checkpoint)[0])
    _, params = load_params(checkpoint, jnp.bfloat16)
    engine = Engine(layout, params, slots=4, length=64)
    assert all(len(answer.tokens) == 5 for answer in _generate(engine, [Request(p, 5) for p in _prompts(1)]))


def _same_as_transformers(folder, prompts, new, figures, name):
    checkpoint = open_checkpoint(str(folder), "model")
    layout = Layout(build_mesh(MeshShape(1, 1, 1), jax.devices()[:1]), load_params(checkpoint)[0])
    _, params = load_params(checkpoint, jnp.float32)
    length = max(map(len, prompts)) + new
    answers = _generate(Engine(layout, params, slots=8, length=length), [Request(prompt, new) for prompt in prompts])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ties = 0
    for prompt, answer in zip(prompts, answers):
        expected = _theirs(theirs, prompt, new)
        differ = np.flatnonzero(answer.tokens != expected)
        if differ.size:
            assert _margin(theirs, [*prompt, *expected[: differ[0]]]) < NEAR
            ties += 1
    figures.append(f"{name}: {len(prompts)} greedy answers of {new} tokens equal transformers', {ties} part at a tie")


@pytest.mark.slow
def test_the_miniature_says_what_transformers_says(figures):
    checkpoint = open_checkpoint("miniature:instruct", "model")
    tokenizer = load_tokenizer(checkpoint.path, "model")
    conversations = corpus("instruct", 3, 24, "test")
    prompts = [encode_prompt(Prompt(one.name, 0, messages=one.messages[:-1]), tokenizer)[0] for one in conversations]
    _same_as_transformers(checkpoint.path, prompts, 32, figures, "miniature")


@pytest.mark.slow
def test_stories260k_tells_what_transformers_tells(shared, tmp_path, figures):
    weights = shared / "weights"
    if not (weights / "stories260K.bin").is_file():
        pytest.skip("the shared data lacks weights/stories260K.bin")
    support.convert(weights / "stories260K.bin", tmp_path / "stories", tokenizer=str(weights / "tok512.bin"))
    rng = np.random.default_rng(0)
    prompts = [np.concatenate([[1], rng.integers(3, 512, length)]) for length in rng.integers(0, 60, 12)]
    _same_as_transformers(tmp_path / "stories", prompts, 100, figures, "stories260K")


INT8 = {
    "weights": {"int8_weights": True},
    "cache": {"int8_cache": True},
    "both": {"int8_weights": True, "int8_cache": True},
}


@pytest.mark.parametrize("what", in_every_run(INT8, lambda what: False))
def test_int8_changes_log_likelihoods_little(what, figures):
    """On the miniature, whose weights are trained: of its held-out answers, against the same engine in float32."""
    checkpoint = open_checkpoint("miniature:instruct", "model")
    tokenizer = load_tokenizer(checkpoint.path, "model")
    pairs = []
    for one in corpus("instruct", 4, 32, "test"):
        context = encode_prompt(Prompt(one.name, 0, messages=one.messages[:-1]), tokenizer)[0]
        pairs.append((context, np.array(tokenizer(one.messages[-1]["content"])["input_ids"])))
    length = max(len(context) + len(answer) for context, answer in pairs)
    layout = one_device(load_params(checkpoint)[0])
    _, params = load_params(checkpoint, jnp.float32)
    plain, rounded = (
        Engine(layout, params, slots=8, length=length, **settings).score(pairs) for settings in ({}, INT8[what])
    )
    off = np.concatenate([two - one for (one, _), (two, _) in zip(plain, rounded)])
    same = np.concatenate([one == two for (_, one), (_, two) in zip(plain, rounded)])
    figures.append(
        f"int8 {what}, miniature: log-likelihoods of {off.size} answer tokens move by {np.abs(off).mean():.2g} nats"
        f" in the mean, {np.abs(off).max():.2g} at most; greedy choice the same for {same.mean():.2%}"
    )
    assert 0 < np.abs(off).mean() < 0.05 and abs(off.mean()) < 0.02 and same.mean() > 0.97


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(2, 2, 2), (1, 1, 8)])
def test_int8_is_the_same_on_meshes(model, mesh):
    checkpoint, _ = model(0)
    requests = [Request(prompt, NEW) for prompt in _prompts(3)]
    alone = _generate(_engine(checkpoint, slots=8, **INT8["both"]), requests)
    cut = _generate(_engine(checkpoint, mesh, slots=8, **INT8["both"]), requests)
    for one, two in zip(alone, cut):
        np.testing.assert_array_equal(one.tokens, two.tokens)


def test_quantized_rows_lie_within_half_a_step():
    values = np.random.default_rng(0).standard_normal((5, 3, 64)).astype(np.float32)
    values[2, 1] = 0
    steps, scale = map(np.asarray, quantize(jnp.asarray(values)))
    assert steps.dtype == np.int8 and np.abs(steps).max() == 127
    assert np.all(np.abs(steps * scale[..., None] - values) <= 0.5001 * scale[..., None])


def test_mixed_logits_of_two_models_choose_the_tokens(model):
    (first, _), (second, _) = model(0), model(4)
    first_params, second_params = (load_params(one)[1] for one in (first, second))
    config = load_params(first)[0]
    assert config == load_params(second)[0]
    layout, weights = one_device(config), (0.3, 0.7)
    mixed = Engine(layout, [first_params, second_params], weights=weights, slots=4, length=64, chunks=(4, 16))
    prompts = _prompts(4, count=6)
    answers = _generate(mixed, [Request(prompt, 8) for prompt in prompts])

    def logits_V(tokens):
        each = [forward(params, np.array(tokens)[None], config)[0, -1] for params in (first_params, second_params)]
        return sum(weight * np.asarray(one, np.float64) for weight, one in zip(weights, each))

    for prompt, answer in zip(prompts, answers):
        tokens = list(prompt)
        for token in answer.tokens:
            found_V = logits_V(tokens)
            assert found_V.max() - found_V[token] < NEAR
            tokens.append(int(token))
    pair = (prompts[0], np.array([1, 2, 3]))
    ((found, _),) = mixed.score([pair])
    tokens, expected = list(prompts[0]), []
    for token in pair[1]:
        found_V = logits_V(tokens)
        expected.append(found_V[token] - scipy.special.logsumexp(found_V))
        tokens.append(int(token))
    np.testing.assert_allclose(found, expected, atol=1e-4)
