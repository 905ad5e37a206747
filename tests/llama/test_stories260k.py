"""A published model from end to end: stories260K tells, greedily, the story its author printed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import support
import torch
import transformers
from tokenizers import Tokenizer

from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.parameters.params import load_params
from clinmerge_jax.llama.model import forward

BOS = 1
STEPS = 256  # run.c's default number of steps


@pytest.fixture(scope="module")
def weights(shared):
    folder = shared / "weights"
    names = ("stories260K.bin", "tok512.bin", "stories260K.md")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        pytest.skip(f"the folder of shared data lacks weights/{missing[0]}")
    return folder


@pytest.fixture(scope="module")
def published(weights) -> str:
    """The text below the first greedy command of the model's description."""
    description = (weights / "stories260K.md").read_text(encoding="utf-8")
    return description.split("-t 0.0\n", 1)[1].split("\n```", 1)[0]


@pytest.fixture(scope="module")
def folder(weights, tmp_path_factory):
    output = tmp_path_factory.mktemp("stories260k") / "model"
    return support.convert(weights / "stories260K.bin", output, tokenizer=str(weights / "tok512.bin"))


@pytest.fixture(scope="module")
def loaded(folder):
    return load_params(open_checkpoint(str(folder), "test"))


@pytest.fixture(scope="module")
def greedy(loaded) -> np.ndarray:
    """BOS and the most likely token after each prefix, [T], up to BOS again or to the number of steps."""
    config, params = loaded

    @jax.jit
    def next_token(tokens_BT, position):
        with jax.default_matmul_precision("highest"):
            return jnp.argmax(forward(params, tokens_BT, config)[0, position])

    tokens_BT = np.full((1, STEPS + 1), BOS, np.int32)
    for position in range(STEPS):
        token = int(next_token(jnp.asarray(tokens_BT), position))
        if token == BOS:
            return tokens_BT[0, : position + 1]
        tokens_BT[0, position + 1] = token
    return tokens_BT[0]


def test_greedy_decoding_gives_the_published_text(folder, greedy, published):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert published.startswith("Once upon a time, there was a little girl named Lily.") and len(published) > 500
    assert tokenizer.decode(greedy[1:].tolist()) == published


def test_logits_on_that_text_equal_those_of_torch(folder, loaded, greedy, figures):
    """The bound is relative to the largest logit, which is about 22 here: float32 keeps seven digits of it."""
    config, params = loaded
    transformers.utils.logging.disable_progress_bar()
    model = transformers.LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)
    tokens_BT = greedy[None]
    with torch.inference_mode():
        ids = torch.from_numpy(tokens_BT).long()
        theirs = model(ids).logits.numpy()
        exact = model.double()(ids).logits.numpy()
    with jax.default_matmul_precision("highest"):
        ours = np.asarray(jax.jit(lambda tokens: forward(params, tokens, config))(jnp.asarray(tokens_BT)))
    difference = np.abs(ours - theirs).max()
    largest = np.abs(exact).max()
    our_error, their_error = np.abs(ours - exact).max(), np.abs(theirs - exact).max()
    figures.append(
        f"stories260K: {tokens_BT.shape[1]} tokens, max |logit| {largest:.1f}, difference {difference:.3g};"
        f" from torch's float64: ours {our_error:.3g}, torch's float32 {their_error:.3g}"
    )
    assert difference <= 2e-6 * largest
    assert our_error <= 2 * their_error


def test_the_story_is_likely_text(loaded, greedy):
    """Its own greedy story costs it fewer nats per token than the 1.3 that its author measured on unseen stories."""
    config, params = loaded
    logits_TV = jax.jit(lambda tokens: forward(params, tokens, config))(jnp.asarray(greedy[None]))[0]
    log_probabilities = np.asarray(jax.nn.log_softmax(logits_TV[:-1]))
    assert -log_probabilities[np.arange(len(greedy) - 1), greedy[1:]].mean() < 1.0
