"""Convert a model: GGUF, llama2.c, Orbax or Hugging Face in, a Hugging Face or an Orbax folder out.

python -m clinmerge_jax.main --config=configs/convert.py --config.source=MODEL.gguf --config.output=DIR

A conversion that is killed goes on after its last finished weight file (into Orbax: from the start).
"""

from ml_collections import ConfigDict

from clinmerge_jax.config_argument import parse


def get_config(arg: str = "") -> ConfigDict:
    """Strict: there are no variants."""
    parse(arg, ("",))
    config = ConfigDict()
    config.job = "convert"
    # A GGUF file of a Llama (the first, where there are several), a llama2.c checkpoint, a folder that this job wrote
    # with format=orbax, a Hugging Face folder, org/name[@revision] on the hub, gs://... or s3://..., miniature:NAME.
    config.source = "miniature:instruct"
    # llama2.c's tokenizer file; or a folder whose tokenizer is taken in place of the source's.
    config.tokenizer = ""
    config.format = "huggingface"  # of the result, or orbax, for which the whole model must fit into memory
    # float32, bfloat16, float16; "" rounds nothing: the source's own, and float32 where blocks are dequantized.
    config.dtype = ""
    config.max_shard_gb = 5.0  # of Hugging Face's weight files
    config.output = "runs/convert"
    config.offline = False  # True: no connection is opened, and one that a library tries ends the run
    config.overwrite = False
    config.credentialed = False  # True where the model saw data under a use agreement: the card says so
    return config
