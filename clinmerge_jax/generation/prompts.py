"""Prompts from a config, tokenized and checked against its model."""

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from clinmerge_jax.data.documents import check_vocabulary
from clinmerge_jax.data.miniature import corpus
from clinmerge_jax.data.prompts import Prompt, encode_prompt, read_prompts
from clinmerge_jax.errors import BadInput
from clinmerge_jax.llama.config import LlamaConfig
from clinmerge_jax.miniature.facts import TEST

_MINIATURE, _MINIATURE_PROMPTS = "miniature:chat", 64


def prepare(
    config: ConfigDict, tokenizer, llama: LlamaConfig, length: int = 0
) -> tuple[list[Prompt], list[np.ndarray]]:
    """Reads and tokenizes the first `config.limit` prompts of `config.prompts`.

    Args:
      config: has `prompts`, `fields`, `limit`, `chat_template`, `max_new_tokens` and `too_long`.
      tokenizer: a tokenizer of transformers.
      llama: the architecture of the model.
      length: the most tokens of a prompt and its answer, from `config.length`; 0 for the model's context length.

    Returns:
      The prompts, and the token ids of each.

    Raises:
      BadInput: a field or a prompt is wrong; the message names it without quoting prompt text.
    """
    if config.limit < 0:
        raise BadInput(f"config.limit: is {config.limit}; give how many prompts, or 0 for all")
    if config.max_new_tokens < 1:
        raise BadInput(f"config.max_new_tokens: is {config.max_new_tokens}; give 1 or more")
    if config.too_long not in ("refuse", "cut"):
        raise BadInput(f"config.too_long: {config.too_long!r} is unknown; give refuse or cut")
    most = length or llama.max_position_embeddings
    room = most - config.max_new_tokens
    cut = config.too_long == "cut"
    if cut and room < 1:
        raise BadInput(
            f"config.max_new_tokens: {config.max_new_tokens} leaves no room for a prompt in {most} tokens; give fewer"
        )
    prompts = _read(config.prompts, config.fields)[: config.limit or None]
    found = [encode_prompt(prompt, tokenizer, config.chat_template, room, cut) for prompt in prompts]
    for prompt, (ids, _) in zip(prompts, found):
        check_vocabulary([ids], llama.vocab_size, "config.model")
        if len(ids) > room:
            raise BadInput(
                f"{prompt.name}: {len(ids)} tokens and {config.max_new_tokens} new ones exceed"
                f" {'config.length' if length else 'the model context'} of {most}; shorten it, have it shortened with"
                " config.too_long=cut, or give fewer with config.max_new_tokens"
            )
    shortened = sum(was_cut for _, was_cut in found)
    if shortened:
        logging.warning("%d of %d prompts are shortened to fit", shortened, len(prompts))
    return prompts, [ids for ids, _ in found]


def _read(spec: str, fields: str) -> list[Prompt]:
    if spec != _MINIATURE:
        return read_prompts(spec, "config.prompts", fields)
    conversations = corpus("instruct", 0, _MINIATURE_PROMPTS, TEST)
    return [Prompt(one.name, index, messages=one.messages[:-1]) for index, one in enumerate(conversations)]
