"""Generates answers to a file of prompts.

Reads and tokenizes the prompts once, checks that they fit, loads the model onto the mesh and generates. Each answer is
appended to a file as it finishes; at the end the answers are written in the order of the prompts. A killed run
continues after the answers it has.
"""

import dataclasses
import hashlib
import json
import os
import time
from typing import Any

import jax.numpy as jnp
import numpy as np
import tqdm
from absl import logging
from ml_collections import ConfigDict

from clinmerge_jax import provenance
from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.output import OutputFolder, OutputState
from clinmerge_jax.checkpoint.parameters.params import llama_config, load_params
from clinmerge_jax.checkpoint.tokenizers.tokenizer import load_tokenizer
from clinmerge_jax.errors import BadInput
from clinmerge_jax.generation.engine import Engine, Request, check_engine
from clinmerge_jax.generation.prompts import prepare
from clinmerge_jax.generation.sampling import Sampling, seed_of
from clinmerge_jax.generation.stopping import cut, stop_ids, until
from clinmerge_jax.parallel.layout import make_layout
from clinmerge_jax.parallel.mesh import MeshShape

ANSWERS_FILE = "answers.jsonl"
_UNORDERED_FILE = "answers-as-they-finish.jsonl"
_DTYPES = {"": None, "float32": jnp.float32, "bfloat16": jnp.bfloat16}
_LENGTH_STEP = 64  # lengths are rounded up to a multiple, so that prompts of similar length reuse programs


def run(config: ConfigDict) -> None:
    """Runs the generation that the config describes; see configs/generate.py for its fields."""
    checkpoint = open_checkpoint(config.model, "config.model")
    llama = llama_config(checkpoint)
    if config.dtype not in _DTYPES:
        raise BadInput(f"config.dtype: {config.dtype!r} is unknown; give float32, bfloat16, or leave it empty")
    sampling = Sampling(
        float(config.temperature), config.top_k, float(config.top_p), float(config.min_p),
        float(config.repetition_penalty), config.seed,
    )  # fmt: skip
    tokenizer = load_tokenizer(checkpoint.path, "config.model")
    prompts, tokens = prepare(config, tokenizer, llama, config.length)
    length = config.length or _rounded(max(map(len, tokens)) + config.max_new_tokens, llama.max_position_embeddings)
    stops = (config.stop,) if isinstance(config.stop, str) else tuple(config.stop)
    layout = make_layout(llama, MeshShape(**config.mesh))
    ids = stop_ids(checkpoint)
    dtype = _DTYPES[config.dtype] or checkpoint.tensors["model.embed_tokens.weight"].dtype
    cache_dtype = np.dtype(np.int8) if config.int8_cache else dtype
    check_engine(layout, config.slots, length, ids, cache_dtype, config.attention)
    credentialed = provenance.is_credentialed(False, [checkpoint])
    identity = {
        "job": "generate",
        "inputs": {"model": provenance.fingerprint(checkpoint)},
        "prompts": hashlib.sha256(b"".join(row.tobytes() + b"|" for row in tokens)).hexdigest(),
        "sampling": dataclasses.asdict(sampling),
        "max_new_tokens": config.max_new_tokens,
        "stop": list(stops),
        "dtype": config.dtype,
        "int8": [config.int8_weights, config.int8_cache],
        "attention": config.attention,
        "slots": config.slots,
        "length": length,
    }
    with OutputFolder(config.output, identity, config.overwrite, provenance.same_result) as output:
        output.refuse_overlap({"config.model": checkpoint.path})
        if output.open() is OutputState.FINISHED:
            print(f"{output.target} is finished already: same model, prompts and settings, nothing to do.")
            print("To make it again: --config.overwrite=True.")
            return
        with _Rows(output.path(_UNORDERED_FILE)) as rows:
            todo = [index for index in range(len(prompts)) if index not in rows.known]
            if rows.known:
                logging.info(
                    "continuing the interrupted run: %d of %d answers are there", len(rows.known), len(prompts)
                )
            requests = [
                Request(
                    tokens[index],
                    config.max_new_tokens,
                    dataclasses.replace(sampling, seed=seed_of(config.seed, index)),
                    until(stops, tokenizer),
                )
                for index in todo
            ]
            if todo:
                logging.info("loading %s", config.model)
                _, params = load_params(checkpoint, _DTYPES[config.dtype], mesh=layout.mesh)
                engine = Engine(
                    layout,
                    params,
                    slots=config.slots,
                    length=length,
                    stop_ids=ids,
                    int8_weights=config.int8_weights,
                    int8_cache=config.int8_cache,
                    attention=config.attention,
                )
                del params
                start = time.perf_counter()
                with tqdm.tqdm(total=len(prompts), initial=len(rows.known), desc="generate", unit="answer") as bar:
                    for place, answer in engine.generate(requests):
                        text, _ = cut(tokenizer.decode(answer.tokens, skip_special_tokens=True), stops)
                        index = todo[place]
                        row = {"answer": text, "tokens": len(answer.tokens), "finished": answer.finished}
                        rows.add(index, {"id": prompts[index].id, **row})
                        seconds = time.perf_counter() - start
                        bar.set_postfix_str(f"{engine.counts.new_tokens / seconds:.0f} tokens/s", refresh=False)
                        bar.update()
                seconds = time.perf_counter() - start
                counts = engine.counts
                said = (
                    f"{counts.prompt_tokens} prompt tokens read and {counts.new_tokens} generated in {seconds:.1f} s"
                    f" ({counts.new_tokens / seconds:.0f} a second, compilation included); {counts.live_share:.0%} of"
                    " the decoded rows were live"
                )
            else:
                said = "All answers were there already"
        answers = "".join(json.dumps(rows.known[index], ensure_ascii=False) + "\n" for index in range(len(prompts)))
        output.write_text(ANSWERS_FILE, answers)
        os.chmod(output.path(ANSWERS_FILE), 0o600)  # answers may reveal private prompts
        output.path(_UNORDERED_FILE).unlink()
        output.commit(
            {
                **provenance.environment(),
                "sha256": {"model": provenance.digests(checkpoint, {})},
                "credentialed": credentialed,
                "config": config.to_dict(),
            }
        )
    endless = sum(not row["finished"] for row in rows.known.values())
    print(f"{said}.")
    print(f"{len(prompts)} answers, {endless} of them cut at {config.max_new_tokens} tokens, are in")
    print(f"{output.target / ANSWERS_FILE}")
    print(
        "Next: try other settings with another --config.output; --config.chat_template=True is for raw prompts to a"
        " chat model."
    )


class _Rows:
    """File of answers as they finish, a JSON line each; a context manager. A kill loses at most the last line."""

    def __init__(self, path):
        self.known: dict[int, dict[str, Any]] = {}
        whole = path.read_bytes() if path.is_file() else b""
        whole = whole[: whole.rfind(b"\n") + 1]
        for line in whole.splitlines():
            row = json.loads(line)
            self.known[row.pop("index")] = row
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        os.ftruncate(descriptor, len(whole))
        self._file = os.fdopen(descriptor, "ab")

    def add(self, index: int, row: dict[str, Any]) -> None:
        """Appends an answer."""
        self.known[index] = row
        self._file.write(json.dumps({"index": index, **row}).encode() + b"\n")
        self._file.flush()

    def __enter__(self) -> "_Rows":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _rounded(length: int, most: int) -> int:
    return min(-(-length // _LENGTH_STEP) * _LENGTH_STEP, most)
