"""Holds a model here against the same checkpoint in transformers and torch: logits, layers, greedy answers.

Read the prompts, run both models over each, and say how far logits and hidden states are apart, how often both find the
same next token the likeliest, and how long their greedy answers agree.
"""

import dataclasses
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from ml_collections import ConfigDict

from clinmerge_jax import provenance
from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.output import OutputFolder, OutputState
from clinmerge_jax.checkpoint.params import llama_config, load_params
from clinmerge_jax.checkpoint.tokenizer import load_tokenizer
from clinmerge_jax.errors import BadInput
from clinmerge_jax.generation.engine import Engine, Request
from clinmerge_jax.generation.prompts import prepare
from clinmerge_jax.generation.stopping import stop_ids
from clinmerge_jax.llama.attention import Backend, Use, over_sequences, resolve
from clinmerge_jax.llama.model import forward, hidden_states
from clinmerge_jax.parallel.layout import one_device
from clinmerge_jax.report.tables import table

_DTYPES = ("float32", "bfloat16")
_WIDTH = 64  # prompts are padded to a multiple, so that few programs are compiled


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One prompt through both models.

    Attributes:
      tokens: of the prompt.
      largest: difference of a logit.
      rms: of the differences of all logits.
      divergence: KL(theirs || ours) of the next token, mean over positions, in nats.
      agreement: share of positions where both find the same token the likeliest.
      same: greedy tokens before the first difference.
      answered: greedy tokens of theirs.
      margin: how far the two likeliest tokens of theirs are apart where answers first differ; None where they do not.
      layers: by layer, the norm of the difference of what goes in over the norm of theirs; the last is what comes out.
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


def run(config: ConfigDict) -> None:
    """Compares; see configs/compare.py for its fields."""
    checkpoint = open_checkpoint(config.model, "config.model")
    llama = llama_config(checkpoint)
    if config.dtype not in _DTYPES:
        raise BadInput(f"config.dtype: {config.dtype!r} is unknown; give one of {', '.join(_DTYPES)}")
    layout = one_device(llama)
    attention = resolve(config.attention, Use.SEQUENCES, llama, config.dtype, layout.device)
    try:
        import torch
        import transformers
    except ImportError as error:
        raise BadInput("configs/compare.py: torch is not installed; pip install clinmerge_jax[reference]") from error
    tokenizer = load_tokenizer(checkpoint.path, "config.model")
    prompts, tokens = prepare(config, tokenizer, llama)
    identity = {
        "job": "compare",
        "inputs": {"model": provenance.fingerprint(checkpoint)},
        "prompts": [row.tolist() for row in tokens],
        "max_new_tokens": config.max_new_tokens,
        "dtype": config.dtype,
        "layers": config.layers,
        "attention": config.attention,
    }
    with OutputFolder(config.output, identity, config.overwrite, provenance.same_result) as output:
        output.refuse_overlap({"config.model": checkpoint.path})
        if output.open() is OutputState.FINISHED:
            print(f"{output.target} is finished already: same model, prompts and settings, nothing to do.")
            return
        _, params = load_params(checkpoint, jnp.dtype(config.dtype))
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            checkpoint.path, dtype=getattr(torch, config.dtype), local_files_only=True
        ).eval()
        ids = stop_ids(checkpoint)
        engine = Engine(layout, params, slots=1, length=max(map(len, tokens)) + config.max_new_tokens, stop_ids=ids)
        found = []
        with tqdm.tqdm(total=len(tokens), desc="compare", unit="prompt") as bar, torch.inference_mode():
            for row in tokens:
                found.append(_compare(row, params, llama, engine, theirs, ids, config, attention))
                bar.update()
        rows = [{"id": prompt.id, **dataclasses.asdict(one)} for prompt, one in zip(prompts, found)]
        output.write_text("comparison.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        text = _text(found, config)
        output.write_text("README.md", f"# {output.target.name}: here against transformers\n\n{text}\n")
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        digests = {"model": provenance.digests(checkpoint, {})}
        output.commit({**provenance.environment(), "reference": versions, "sha256": digests})
    print(f"\n{text}")
    print(f"\nThe figures of every prompt are in {output.target / 'comparison.jsonl'}.")


def _compare(
    tokens: np.ndarray, params, llama, engine: Engine, theirs, ids, config: ConfigDict, attention: Backend
) -> Comparison:
    import torch

    given = torch.tensor(tokens.astype(np.int64))[None]
    reference = theirs(given, output_hidden_states=config.layers)
    want = reference.logits[0].float().numpy()
    width = min(-(-len(tokens) // _WIDTH) * _WIDTH, llama.max_position_embeddings)
    padded = np.pad(tokens, (0, width - len(tokens)))[None]
    have = np.asarray(_forward(params, padded, llama, attention))[0, : len(tokens), : want.shape[1]]
    layers: tuple[float, ...] = ()
    if config.layers:
        ours = np.asarray(_hidden(params, padded, llama))[:, 0, : len(tokens)].astype(np.float64)
        # transformers' last one lies behind the final norm, so that what the last layer gives has no counterpart.
        pairs = zip(ours[:-1], (one[0].double().numpy() for one in reference.hidden_states[:-1]))
        layers = tuple(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs)
    log_want, log_have = (torch.log_softmax(torch.tensor(x).double(), -1).numpy() for x in (want, have))
    answer = [answer for _, answer in engine.generate([Request(tokens, config.max_new_tokens)])][0].tokens
    expected = _greedy(theirs, given, ids, config.max_new_tokens)
    both = min(len(answer), len(expected))
    differ = np.flatnonzero(answer[:both] != expected[:both])
    same = int(differ[0]) if differ.size else both
    margin = None
    if same < max(len(answer), len(expected)):
        whole = torch.tensor(np.concatenate([tokens, expected[:same]]).astype(np.int64))[None]
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
        layers=layers,
    )


def _greedy(theirs, given, ids, new: int) -> np.ndarray:
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
    tokens = answer[0, given.shape[1] :].numpy()
    return tokens[:-1] if len(tokens) and tokens[-1] in ids else tokens


@functools.partial(jax.jit, static_argnames=("config", "attention"))
def _forward(params, tokens_BT, config, attention) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        return forward(params, tokens_BT, config, attend=over_sequences(attention)).astype(jnp.float32)


@functools.partial(jax.jit, static_argnames="config")
def _hidden(params, tokens_BT, config) -> jax.Array:
    with jax.default_matmul_precision("highest"):
        return hidden_states(params, tokens_BT, config).astype(jnp.float32)


def _text(found: list[Comparison], config: ConfigDict) -> str:
    tokens = sum(one.tokens for one in found)

    def mean(name: str) -> float:
        return sum(one.tokens * getattr(one, name) for one in found) / tokens

    parted = [one for one in found if one.margin is not None]
    facts: list[tuple[str, Any]] = [
        ("prompts", len(found)),
        ("positions", tokens),
        ("largest difference of a logit", f"{max(one.largest for one in found):.3g}"),
        ("root mean square difference", f"{np.sqrt(_mean_square(found)):.3g}"),
        ("KL(transformers || here), nats, mean", f"{mean('divergence'):.3g}"),
        ("same likeliest token", f"{mean('agreement'):.4%}"),
        ("greedy tokens before a first difference", f"{sum(one.same for one in found)} of"
                                                    f" {sum(one.answered for one in found)}"),
        ("answers that part", f"{len(parted)}" + (f" (largest margin there {max(one.margin for one in parted):.2g})"
                                                  if parted else "")),
    ]  # fmt: skip
    lines = [table([f"{config.dtype}, here against transformers", ""], [[name, str(value)] for name, value in facts])]
    if config.layers:
        worst = np.max([one.layers for one in found], axis=0)
        rows = [[f"into layer {index}", f"{value:.2g}"] for index, value in enumerate(worst)]
        lines.append(table(["hidden state", "largest |here - transformers| / |transformers|"], rows))
    return "\n\n".join(lines)


def _mean_square(found: list[Comparison]) -> float:
    """The mean square of all logits' differences."""
    return sum(one.tokens * one.rms**2 for one in found) / sum(one.tokens for one in found)
