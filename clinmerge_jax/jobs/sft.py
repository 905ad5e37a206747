"""Continues a checkpoint on a user's own text with the plain loop of `training.loop`."""

import dataclasses
import math
import pathlib

import jax
import jax.numpy as jnp
import tqdm
from absl import logging
from ml_collections import ConfigDict

from clinmerge_jax import provenance
from clinmerge_jax.checkpoint.card import shown_name, training_card
from clinmerge_jax.checkpoint.digest import sha256
from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.output import OutputFolder, OutputState
from clinmerge_jax.checkpoint.params import llama_config, load_params, save_params
from clinmerge_jax.checkpoint.tokenizer import load_tokenizer
from clinmerge_jax.data.documents import Document, check_vocabulary, encode, pack
from clinmerge_jax.data.reading import read_documents
from clinmerge_jax.errors import BadInput
from clinmerge_jax.miniature.corpus import corpus
from clinmerge_jax.training.loop import TrainingSettings, train


def run(config: ConfigDict) -> None:
    """Trains on `config.text` and writes a checkpoint in the dtype of the start."""
    checkpoint = open_checkpoint(config.model, "config.model")
    llama = llama_config(checkpoint)
    if config.steps < 0:
        raise BadInput(f"config.steps: is {config.steps}; give a number over 0, or 0 for as many as the epochs take")
    for field in ("epochs", "batch_size", "length", "learning_rate", "final_learning_rate"):
        if not 0 < config[field] < math.inf:
            raise BadInput(f"config.{field}: is {config[field]}; give a number over 0")
    if config.length > llama.max_position_embeddings:
        raise BadInput(f"config.length: {config.length} is over the model's context of {llama.max_position_embeddings}")
    documents = _documents(config.text)
    tokenizer = load_tokenizer(checkpoint.path, "config.model")
    encoded = [encode(document, tokenizer, tokenizer.eos_token_id) for document in documents]
    check_vocabulary(encoded, llama.vocab_size, "config.model")
    windows = pack(encoded, config.length)
    scored = int(windows[1].sum())
    if not scored:
        raise BadInput(f"config.text: no token of {config.text} would be learned; give more or longer text")
    dtypes = {entry.dtype for entry in checkpoint.tensors.values()}
    if len(dtypes) > 1:
        raise BadInput(f"config.model: {checkpoint.path} mixes {', '.join(map(str, dtypes))}; save it in one dtype")
    settings = TrainingSettings(
        steps=config.steps or max(1, round(config.epochs * len(windows[0]) / config.batch_size)),
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        final_learning_rate=config.final_learning_rate,
        seed=config.seed,
    )
    credentialed = provenance.is_credentialed(config.credentialed, [checkpoint])
    identity = {
        "job": "sft",
        "inputs": {"model": provenance.fingerprint(checkpoint)},
        "text": _text_identity(config.text),
        "length": config.length,
        "settings": dataclasses.asdict(settings),
        "credentialed": credentialed,
    }
    with OutputFolder(config.output, identity, config.overwrite, provenance.same_result) as output:
        output.refuse_overlap({"config.model": checkpoint.path})
        if output.open() is OutputState.FINISHED:
            print(f"{output.target} is finished already: same start, text and settings, nothing to do.")
            return
        logging.info(
            "%d documents, %d windows, %d scored tokens, %d steps",
            len(documents),
            len(windows[0]),
            scored,
            settings.steps,
        )
        _, params = load_params(checkpoint, jnp.float32)
        losses = []
        with tqdm.tqdm(total=settings.steps, desc="train", unit="step", mininterval=0.5, leave=False) as bar:

            def progress(step: int, loss: float) -> None:
                losses.append(round(loss, 4))
                bar.update(step - bar.n)

            params = train(params, llama, windows, settings, progress)
        if not all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)):
            raise BadInput(f"config.learning_rate: {config.learning_rate} made the weights diverge; give a lower one")
        (dtype,) = dtypes
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        save_params(params, llama, checkpoint.config, output, carried=checkpoint.carried_files())
        record = {
            **provenance.environment(),
            "sha256": {"model": provenance.digests(checkpoint, {})},
            "credentialed": credentialed,
            "training": {**dataclasses.asdict(settings), "scored_tokens": scored},
            "losses": losses,
        }
        name = shown_name(config.model)
        card = training_card(output.target.name, name, checkpoint.path, record["training"], credentialed)
        output.write_text("README.md", card)
        output.commit(record)
    print(f"Training loss: {losses[0]:.3f} at the first step, {losses[-1]:.3f} at the last.")
    print(
        f"The checkpoint is {output.target}.\nNext: merge it with --config=configs/merge.py"
        f" --config.clinical={output.target} --config.instruct=DIR"
    )


_MINIATURE = "miniature:"
_MINIATURE_SEED = 2  # other documents than the shipped models were trained on
_MINIATURE_DOCUMENTS = 1000


def _documents(text: str) -> list[Document]:
    """The documents of a file, or of `miniature:clinical` and `miniature:instruct`."""
    if not text.startswith(_MINIATURE):
        return read_documents(text, "config.text")
    name = text.removeprefix(_MINIATURE)
    if name not in ("clinical", "instruct"):
        raise BadInput(f"config.text: there is no corpus {text!r}; there are miniature:clinical and miniature:instruct")
    return corpus(name, _MINIATURE_SEED, _MINIATURE_DOCUMENTS)


def _text_identity(text: str) -> str:
    return text if text.startswith(_MINIATURE) else sha256(pathlib.Path(text).expanduser())
