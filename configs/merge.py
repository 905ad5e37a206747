"""Merge a clinical Llama with an instruct Llama in weight space (arXiv 2604.01538).

python -m clinmerge_jax.main --config=configs/merge.py[:linear|:slerp|:biomistral] \
    --config.instruct=DIR --config.clinical=DIR --config.output=DIR

As it stands it merges the miniature's two fine-tuned models and measures them against its base.
"""

from ml_collections import ConfigDict

from clinmerge_jax.config_argument import parse

# BioMistral's slerp schedule over depth (Labrak et al. 2024, arXiv 2402.10373), instruct as base.
BIOMISTRAL = "self_attn=0,0.5,0.3,0.7,1; mlp=1,0.5,0.7,0.3,0; 0.5"


def get_config(arg: str = "") -> ConfigDict:
    """Strict: "linear" (the default), "slerp" at t = 0.5, or "biomistral"."""
    variant = parse(arg, ("", "linear", "slerp", "biomistral"))
    config = ConfigDict()
    config.job = "merge"
    # A folder, or miniature:NAME. The base is only measured, never merged: "auto" takes the miniature's
    # for two miniatures and none otherwise, "" none.
    config.instruct = "miniature:instruct"
    config.clinical = "miniature:clinical"
    config.base = "auto"
    config.method = "linear" if variant in ("", "linear") else "slerp"
    # 0 is instruct, 1 is clinical: a number, a list over depth ("0,0.5,1"), or such per module
    # ("self_attn=0,1; mlp=1,0; 0.5": the first filter that is part of the tensor's name wins).
    config.t = BIOMISTRAL if variant == "biomistral" else "0.5"
    config.dtype = ""  # float32, bfloat16, float16; "" keeps instruct's
    # "streaming": piece by piece in bounded memory, on one device. "mesh": both models and the result in the memory
    # of all devices, of all processes under --distributed; the same bytes.
    config.engine = "streaming"
    # Devices along each axis, for the mesh engine and for the evaluation; 0 leaves an axis to be picked.
    config.mesh = ConfigDict({"data": 0, "fsdp": 0, "tensor": 0})
    config.output = f"runs/merge-{variant or 'linear'}"
    config.overwrite = False
    config.max_shard_gb = 5.0
    # Held-out text: "auto" (the miniature's own for miniature models, else none), "" for none, or
    # NAME=FILE.jsonl,... with a "text" or "messages" field per line.
    config.evaluate = "auto"
    config.credentialed = False  # True where a parent saw data under a use agreement: the card says so
    return config
