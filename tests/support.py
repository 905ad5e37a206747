"""Helpers that several tests share: tiny checkpoints from an independent writer, and the command line in-process."""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any
from unittest import mock

import grain  # noqa: F401  # it defines flags, which must be there before a command parses its own
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tokenizers
from absl import flags
from absl.testing import flagsaver
from ml_collections import ConfigDict

from clinmerge_jax import command_line, main
from clinmerge_jax.jobs import convert as convert_job
from clinmerge_jax.llama.config import LlamaConfig, RopeConfig

BF16 = np.dtype(ml_dtypes.bfloat16)

WORDS = ("<s>", "</s>", "<unk>", "the", "patient", "has", "a", "fever", "and", "cough", "user", "assistant", ".")

TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 32,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "bfloat16",
}


def llama_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a Llama without biases, written down apart from the package's own table."""
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, keys = head * config["num_attention_heads"], head * config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "input_layernorm.weight": (hidden,),
            prefix + "self_attn.q_proj.weight": (queries, hidden),
            prefix + "self_attn.k_proj.weight": (keys, hidden),
            prefix + "self_attn.v_proj.weight": (keys, hidden),
            prefix + "self_attn.o_proj.weight": (hidden, queries),
            prefix + "post_attention_layernorm.weight": (hidden,),
            prefix + "mlp.gate_proj.weight": (inner, hidden),
            prefix + "mlp.up_proj.weight": (inner, hidden),
            prefix + "mlp.down_proj.weight": (hidden, inner),
        }
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocabulary, hidden)
    return shapes


def llama_tensors(config: Mapping[str, Any], seed: int = 0, dtype: Any = BF16) -> dict[str, np.ndarray]:
    """Random tensors for a config.json, each drawn from a normal distribution."""
    generator = np.random.default_rng(seed)
    return {name: generator.normal(size=shape).astype(dtype) for name, shape in llama_shapes(config).items()}


def write_llama(
    folder: pathlib.Path,
    seed: int = 0,
    dtype: Any = BF16,
    shards: int = 1,
    tensors: Mapping[str, np.ndarray] | None = None,
    **overrides: Any,
) -> pathlib.Path:
    """Writes a tiny random Llama checkpoint with the `safetensors` library.

    Args:
      folder: where to; made with its parents.
      seed: of the weights.
      dtype: of the weights.
      shards: weight files; more than one come with an index.
      tensors: the weights, where they are not to be random.
      **overrides: fields of config.json; a value of None leaves the field out.

    Returns:
      The folder.
    """
    folder.mkdir(parents=True)
    config = {**TINY, "torch_dtype": str(np.dtype(dtype)), **overrides}
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = llama_tensors(config, seed, dtype) if tensors is None else dict(tensors)
    if shards == 1:
        safetensors.numpy.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder
    weight_map = {}
    for shard, names in enumerate(np.array_split(list(tensors), shards), start=1):
        file_name = f"model-{shard:05d}-of-{shards:05d}.safetensors"
        safetensors.numpy.save_file({str(name): tensors[name] for name in names}, folder / file_name)
        weight_map |= {str(name): file_name for name in names}
    write_index(folder, weight_map)
    return folder


def convert(source: pathlib.Path | str, output: pathlib.Path, **fields: Any) -> pathlib.Path:
    """Converts a model to a Hugging Face folder, by the job; further fields are the config's.

    Returns:
      The folder.
    """
    settings = {"job": "convert", "source": str(source), "tokenizer": "", "format": "huggingface", "dtype": ""}
    settings |= {"max_shard_gb": 5.0, "overwrite": False, "credentialed": False, "output": str(output), **fields}
    convert_job.run(ConfigDict(settings))
    return output


def write_index(folder: pathlib.Path, weight_map: Mapping[str, Any]) -> pathlib.Path:
    """Writes model.safetensors.index.json with this weight_map and returns its path."""
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path


def read_raw(path: pathlib.Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Dtype code, shape and bytes of every tensor of a file, as the `safetensors` library reads it."""
    entries = safetensors.deserialize(path.read_bytes())
    return {name: (entry["dtype"], tuple(entry["shape"]), bytes(entry["data"])) for name, entry in entries}


def write_tokenizer(folder: pathlib.Path, words: Sequence[str] = WORDS, chat_template: str | None = None) -> None:
    """Adds a word-level tokenizer to a folder, in which a word's id is its place."""
    ids = {word: index for index, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    if chat_template is not None:
        settings["chat_template"] = chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@contextlib.contextmanager
def _fresh_flags(argv: Sequence[str]):
    """absl's flags as at the start of a process, restored afterwards."""
    with flagsaver.flagsaver(), mock.patch.object(sys, "argv", list(argv)):
        flags.FLAGS.unparse_flags()
        flags.FLAGS["config"].unparse()
        sys.modules.pop("config_config", None)  # into which a config file is loaded
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "the load_module", DeprecationWarning)  # ml_collections calls it
                yield
        finally:
            flags.FLAGS.unparse_flags()


LLAMA_3_1_8B = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    rms_norm_eps=1e-5,
    max_position_embeddings=131072,
    rope=RopeConfig("llama3", 500000.0, 8.0, 1.0, 4.0, 8192),
)
LLAMA_3_1_70B = dataclasses.replace(
    LLAMA_3_1_8B, hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64
)


def tpu_devices(patch, topology: str, kind: str) -> Sequence[Any]:
    """Abstract TPU devices to compile for, as libtpu describes them where there is no TPU.

    Args:
      patch: pytest's MonkeyPatch.
      topology: such as v5e:4x4.
      kind: an accelerator type of that size, such as v5litepod-16.
    """
    from jax.experimental import topologies

    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",  # no machine to ask what it is
        "TPU_ACCELERATOR_TYPE": kind,
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # other processes compile too; none uses a TPU
    }.items():
        patch.setenv(name, value)
    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices


def tiny_config(**fields: Any) -> LlamaConfig:
    """A Llama of two layers and a vocabulary of 32 for tests that need any model."""
    sizes = {
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 256,
    }
    return LlamaConfig(**{**sizes, **fields})


def run_process(repository: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess:
    """Runs `python -m clinmerge_jax.main ARGUMENTS` as a process of its own."""
    command = [sys.executable, "-m", "clinmerge_jax.main", *arguments]
    return subprocess.run(command, cwd=repository, capture_output=True, text=True)


def run_script(script: str, *arguments: object) -> str:
    """What a Python script prints, in a process of its own that may import what tests share."""
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parent)}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def run_command(*arguments: str) -> int:
    """Runs `python -m clinmerge_jax.main ARGUMENTS` in this process and returns its exit status.

    What would end a real process with a traceback is raised.
    """
    argv = ["clinmerge_jax.main", *arguments]
    with _fresh_flags(argv):
        try:
            main.main(command_line.parse_flags(argv))
        except SystemExit as stop:
            return stop.code
    return 0


def in_every_run(values, often, identifier=None) -> list:
    """Parameters of a test or fixture: those that `often` picks run always, the others only with --all."""
    return [
        pytest.param(
            value,
            id=None if identifier is None else identifier(value),
            marks=[] if often(value) else [pytest.mark.slow],
        )
        for value in values
    ]
