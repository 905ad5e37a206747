"""Compares logits and greedy answers of a model here with those of the same model in transformers."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from clinmerge_jax.generation.engine import Engine, Request
from clinmerge_jax.llama.attention import Backend, over_sequences
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.model import forward, hidden_states
from clinmerge_jax.llama.parameters import Params

_WIDTH = 64  # prompts are padded to a multiple of it, so that few programs are compiled


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The differences between both models on one prompt.

    Attributes:
      tokens: the number of tokens of the prompt.
      largest: the largest absolute difference of a logit.
      rms: the root mean square of the differences of all logits.
      divergence: KL(theirs || ours) of the next token, mean over positions, in nats.
      agreement: the share of positions where both models have the same most likely token.
      same: the number of greedy tokens before the first difference.
      answered: the number of greedy tokens of transformers' answer.
      margin: the difference of transformers' two largest logits where the answers first differ; None if they do not.
      layers: for each layer's input, the norm of the difference over the norm of transformers'; empty if not compared.
    """

    tokens: int
    largest: float
    rms: float
    divergence: float
    agreement: float
    same: int
    answered: int
    margin: float | None
    layers: tuple[float, ...]


def compare(
    tokens: np.ndarray,
    params: Params,
    llama: LlamaConfig,
    engine: Engine,
    theirs: Any,
    stop_ids: Sequence[int],
    new: int,
    attention: Backend = Backend.REFERENCE,
    *,
    layers: bool = False,
) -> Comparison:
    """Runs both models on one prompt. Call it under `torch.inference_mode`.

    Args:
      tokens: token ids of the prompt, [T].
      params: the parameters of the model here.
      llama: its architecture.
      engine: an engine with these parameters and stop ids.
      theirs: the same model in transformers, on any device.
      stop_ids: the stop ids of both.
      new: the most tokens of a greedy answer.
      attention: the backend for the logits here.
      layers: whether to compare hidden states too.
    """
    import torch

    given = torch.tensor(tokens.astype(np.int64), device=theirs.device)[None]
    reference = theirs(given, output_hidden_states=layers)
    want = reference.logits[0].float().cpu().numpy()
    width = min(-(-len(tokens) // _WIDTH) * _WIDTH, llama.max_position_embeddings)
    padded = np.pad(tokens, (0, width - len(tokens)))[None]
    have = np.asarray(_forward(params, padded, llama, attention))[0, : len(tokens), : want.shape[1]]
    apart: tuple[float, ...] = ()
    if layers:
        ours = np.asarray(_hidden(params, padded, llama))[:, 0, : len(tokens)].astype(np.float64)
        # transformers' last hidden state is after the final norm, so the last layer's output has no counterpart.
        pairs = zip(ours[:-1], (one[0].double().cpu().numpy() for one in reference.hidden_states[:-1]))
        apart = tuple(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs)
    log_want, log_have = (torch.log_softmax(torch.tensor(x).double(), -1).numpy() for x in (want, have))
    answer = [answer for _, answer in engine.generate([Request(tokens, new)])][0].tokens
    expected = _greedy(theirs, given, stop_ids, new)
    both = min(len(answer), len(expected))
    differ = np.flatnonzero(answer[:both] != expected[:both])
    same = int(differ[0]) if differ.size else both
    margin = None
    if same < max(len(answer), len(expected)):
        whole = torch.tensor(np.concatenate([tokens, expected[:same]]).astype(np.int64))[None].to(theirs.device)
        top = theirs(whole).logits[0, -1].float().topk(2).values
        margin = float(top[0] - top[1])
    return Comparison(
        tokens=len(tokens),
        largest=float(np.abs(have - want).max()),
        rms=float(np.sqrt(np.mean((have - want) ** 2))),
        divergence=float(np.mean(np.sum(np.exp(log_want) * (log_want - log_have), axis=-1))),
        agreement=float(np.mean(have.argmax(-1) == want.argmax(-1))),
        same=same,
        answered=len(expected),
        margin=margin,
        layers=apart,
    )


def _greedy(theirs: Any, given: Any, ids: Sequence[int], new: int) -> np.ndarray:
    answer = theirs.generate(
        given,
        attention_mask=given.new_ones(given.shape),
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=list(ids) or None,
        pad_token_id=0,
        temperature=None,
        top_k=None,
        top_p=None,
        repetition_penalty=1.0,
    )
    tokens = answer[0, given.shape[1] :].cpu().numpy()
    return tokens[:-1] if len(tokens) and tokens[-1] in ids else tokens


@functools.partial(jax.jit, static_argnames=("config", "attention"))
def _forward(params, tokens_BT, config, attention) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        return forward(params, tokens_BT, config, attend=over_sequences(attention)).astype(jnp.float32)


@functools.partial(jax.jit, static_argnames="config")
def _hidden(params, tokens_BT, config) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        return hidden_states(params, tokens_BT, config).astype(jnp.float32)
