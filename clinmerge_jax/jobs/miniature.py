"""Trains the miniature: small Llamas on text about the invented world of `clinmerge_jax.miniature.world`.

copying learns to copy words. base continues it on everyday text and on note-shaped text without facts. clinical
continues base on documents that state the facts. instruct continues base on everyday chat, with the loss on the
answers.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from ml_collections import ConfigDict

from clinmerge_jax import provenance
from clinmerge_jax.checkpoint.digest import sha256
from clinmerge_jax.checkpoint.files import SINGLE_FILE
from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.output import OutputFolder, OutputState, result_path
from clinmerge_jax.checkpoint.parameters.params import load_params, save_params
from clinmerge_jax.checkpoint.tokenizers.tokenizer import load_tokenizer
from clinmerge_jax.data.examples import prepare
from clinmerge_jax.data.loader import steps_of
from clinmerge_jax.data.miniature import corpus
from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.llama.parameters import count_parameters, init_params
from clinmerge_jax.miniature.tokenizer import EOT, train_tokenizer
from clinmerge_jax.parallel.layout import one_device
from clinmerge_jax.training.batching import Batching
from clinmerge_jax.training.loop import LoopSettings, train
from clinmerge_jax.training.optimizer import OptimizerSettings
from clinmerge_jax.training.run import Run
from clinmerge_jax.training.step import StepSettings

_TOKENIZER_DOCUMENTS = 4000  # of each corpus; more hardly change the BPE merges
_TOKENIZER_SEED = 0  # the same for all families, so that models of two families can be merged
_WARMUP_STEPS = 20
_CARD = """---
license: apache-2.0
---
# clinmerge_jax miniature: {name}

{parameters:,} parameters, trained from seed {seed} on generated text about an invented world. It knows nothing of
real medicine and is of no use outside tests and demonstrations.
"""


def run(config: ConfigDict) -> None:
    """Trains the models that are missing, each into a folder of `output`, saved in bfloat16."""
    output = result_path(config.output)
    names = [name.strip() for name in config.models.split(",")]
    for name in names:
        if name not in config.stages:
            raise BadInput(f"config.models: {name!r} is unknown; choose from {', '.join(config.stages)}")
    for name in names:
        _make(config, name)
    print(
        f"The miniature is in {output}.\nNext: python -m clinmerge_jax.main --config=configs/merge.py"
        f" --config.instruct={output / 'instruct'} --config.clinical={output / 'clinical'}"
        f" --config.base={output / 'base'}"
    )


def _make(config: ConfigDict, name: str) -> None:
    stage = config.stages[name]
    unrelated = ("output", "overwrite", "models", "stages")
    settings_of = {key: value for key, value in config.to_dict().items() if key not in unrelated}
    identity = {"job": "miniature", "model": name, "config": settings_of, "stage": stage.to_dict()}
    start = result_path(config.output) / stage.start if stage.start else None
    if start is None:  # its tokenizer is trained on a share of all four corpora
        identity["tokenizer"] = _tokenizer_documents(config)
    if start is not None:
        if not (start / SINGLE_FILE).is_file():
            raise BadInput(f"config.models: {name} starts from {stage.start}, which is not there; name it too")
        identity["start"] = sha256(start / SINGLE_FILE)
    with OutputFolder(result_path(config.output) / name, identity, config.overwrite) as folder:
        if folder.open() is OutputState.FINISHED:
            logging.info("%s is trained already", folder.target)
            return
        if start is None:
            tokenizer = _tokenizer(config)
            raw = _raw_config(config.model, len(tokenizer), tokenizer)
            llama = LlamaConfig.from_json(raw, "config.model")
            params = init_params(llama, jax.random.key(config.seed))
            tokenizer.save_pretrained(folder.partial)
            folder.write_text("generation_config.json", _generation_config(tokenizer))
            carried: Sequence[pathlib.Path] = ()
        else:
            checkpoint = open_checkpoint(str(start), "config.output")
            llama, params = load_params(checkpoint, jnp.float32)
            raw, carried = checkpoint.config, checkpoint.carried_files()
            tokenizer = load_tokenizer(start, "config.output")
        seed = config.seed + stage.seed
        documents = [one for corpus_name, count in stage.documents.items() for one in corpus(corpus_name, seed, count)]
        logging.info("%s: %d parameters, %d documents", name, count_parameters(llama), len(documents))
        examples = prepare(
            documents, tokenizer, llama.vocab_size, config.length, chat=False, full_rows=True, field="config.output"
        )
        steps = steps_of(len(examples.sequences), config.batch_size, stage.epochs)
        optimizer = OptimizerSettings(
            learning_rate=stage.learning_rate,
            final_share=stage.final_share,
            warmup_steps=min(_WARMUP_STEPS, steps - 1),
            weight_decay=0.01,
            beta2=0.98,
        )
        logging.info("%s: %s, %d steps", name, examples.packed, steps)
        training = Run(
            one_device(llama),
            StepSettings(optimizer, steps, dtype=jnp.float32),
            examples.sequences,
            Batching(config.batch_size, length=config.length),
            seed,
        )
        state = training.begin(params)
        params = train(state, training.take, training.loader(), LoopSettings(steps)).state.trained
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
        save_params(params, llama, raw, folder, carried=carried)
        card = _CARD.format(name=name, parameters=count_parameters(llama), seed=config.seed)
        folder.write_text("README.md", card)
        record = {"training": {"steps": steps, "documents": str(examples.packed)}}
        folder.commit({**provenance.environment(), **record})


def _generation_config(tokenizer) -> str:
    """generation_config.json: the end-of-sequence token and the end-of-turn token both stop generation."""
    stops = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(EOT)]
    content = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": stops, "pad_token_id": tokenizer.pad_token_id}
    return json.dumps(content, indent=1) + "\n"


def _tokenizer_documents(config: ConfigDict) -> dict[str, int]:
    """How many documents of each corpus the tokenizer is trained on."""
    return {
        name: min(_TOKENIZER_DOCUMENTS, config.stages[name].documents[name])
        for name in ("copying", "base", "clinical", "instruct")
    }


def _tokenizer(config: ConfigDict):
    texts = []
    for name, count in _tokenizer_documents(config).items():
        for document in corpus(name, _TOKENIZER_SEED, count):
            texts += [document.text] if document.text else [message["content"] for message in document.messages]
    return train_tokenizer(texts, config.model.vocab_size, config.model.max_position_embeddings)


def _raw_config(model: Mapping[str, Any], vocabulary: int, tokenizer) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **dict(model),
        "vocab_size": vocabulary,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "torch_dtype": "bfloat16",
    }
