"""The arguments in --model_args of lm-eval's command, and the engine built from them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from clinmerge_jax.checkpoint.folder import open_checkpoint
from clinmerge_jax.checkpoint.parameters.params import llama_config, load_params
from clinmerge_jax.checkpoint.tokenizers.tokenizer import load_tokenizer
from clinmerge_jax.errors import BadInput
from clinmerge_jax.generation.engine import Engine, check_engine
from clinmerge_jax.generation.stopping import stop_ids
from clinmerge_jax.parallel.layout import make_layout
from clinmerge_jax.parallel.mesh import MeshShape

MAX_LENGTH = 4096  # a Llama-3.1-8B's full context, 131,072 tokens, takes 17 GB of cache per slot in bfloat16
_DTYPES = {"": None, "auto": None, "float32": jnp.float32, "bfloat16": jnp.bfloat16}
_KINDS = {str: "text", int: "a whole number", bool: "True or False"}


@dataclasses.dataclass(frozen=True)
class ModelArgs:
    """The arguments in --model_args, one field for each.

    Attributes:
      model: a folder, a hub id, a bucket's URL or miniature:NAME.
      dtype: dtype of the computation: float32 or bfloat16; "" and "auto" are the checkpoint's.
      slots: number of requests at a time.
      max_length: tokens of a prompt and its answer; 0 is the model's context length, or `MAX_LENGTH` if that is less.
      int8_weights: as in `Engine`.
      int8_cache: as in `Engine`.
      attention: as in `Engine`.
      data: devices along this axis of the mesh; 0 chooses the number automatically.
      fsdp: likewise.
      tensor: likewise.
    """

    model: str
    dtype: str = ""
    slots: int = 16
    max_length: int = 0
    int8_weights: bool = False
    int8_cache: bool = False
    attention: str = "auto"
    data: int = 0
    fsdp: int = 0
    tensor: int = 0


def read_model_args(given: Mapping[str, Any]) -> ModelArgs:
    """Checks the names and types of the arguments.

    Raises:
      BadInput: naming the argument.
    """
    fields = {field.name: field.type for field in dataclasses.fields(ModelArgs)}
    for name, value in given.items():
        if name not in fields:
            raise BadInput(f"--model_args: {name} is unknown; choose from {', '.join(fields)}, max_gen_toks and seed")
        if type(value) is not fields[name]:
            raise BadInput(f"--model_args: {name} is {value!r}; give {_KINDS[fields[name]]}")
    if "model" not in given:
        raise BadInput("--model_args: has no model; give model=DIR, a hub id or miniature:NAME")
    args = ModelArgs(**given)
    if args.dtype not in _DTYPES:
        raise BadInput(f"--model_args: dtype {args.dtype!r} is unknown; give float32, bfloat16, or leave it out")
    return args


def open_engine(given: Mapping[str, Any]) -> tuple[Engine, Any]:
    """Opens a model: an engine with its weights, and its tokenizer.

    Args:
      given: arguments by name, as in `ModelArgs`.

    Raises:
      BadInput: an argument or a file is wrong; raised before weights are read where possible.
    """
    args = read_model_args(given)
    checkpoint = open_checkpoint(args.model, "--model_args model")
    llama = llama_config(checkpoint)
    tokenizer = load_tokenizer(checkpoint.path, "--model_args model")
    layout = make_layout(llama, MeshShape(args.data, args.fsdp, args.tensor))
    length = args.max_length or min(llama.max_position_embeddings, MAX_LENGTH)
    ends = tuple(dict.fromkeys(index for index in (*stop_ids(checkpoint), tokenizer.eos_token_id) if index is not None))
    dtype = _DTYPES[args.dtype] or checkpoint.tensors["model.embed_tokens.weight"].dtype
    cache_dtype = np.dtype(np.int8) if args.int8_cache else dtype
    check_engine(layout, args.slots, length, ends, cache_dtype, args.attention)
    _, params = load_params(checkpoint, _DTYPES[args.dtype], mesh=layout.mesh)
    engine = Engine(
        layout,
        params,
        slots=args.slots,
        length=length,
        stop_ids=ends,
        int8_weights=args.int8_weights,
        int8_cache=args.int8_cache,
        attention=args.attention,
    )
    return engine, tokenizer
