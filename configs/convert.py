"""Convert a model: GGUF, llama2.c, Orbax or Hugging Face in, a Hugging Face or an Orbax folder out.

python -m clinmerge_jax.main --config=configs/convert.py --config.source=MODEL.gguf --config.output=DIR

A killed conversion continues after its last finished weight file (into Orbax: from the start).
"""

from ml_collections import ConfigDict

from clinmerge_jax.config_argument import parse


def get_config(arg: str = "") -> ConfigDict:
    """The config; this job has no variants, so any argument is refused."""
    parse(arg, ("",))
    config = ConfigDict()
    config.job = "convert"
    # A GGUF file of a Llama (the first one of a split file), a llama2.c checkpoint, a folder that this job wrote with
    # format=orbax, a Hugging Face folder, org/name[@revision] on the hub, gs://... or s3://..., or miniature:NAME.
    config.source = "miniature:instruct"
    # llama2.c's tokenizer file, or a folder whose tokenizer replaces the source's; "": the source's own.
    config.tokenizer = ""
    config.format = "huggingface"  # of the result: huggingface, or orbax, for which the model must fit into memory
    # float32, bfloat16 or float16; "" rounds no matrix: keeps the source's dtype, and float32 for dequantized blocks.
    config.dtype = ""
    config.max_shard_gb = 5.0  # largest size of a Hugging Face weight file, in GB of 1e9 bytes
    config.output = "runs/convert"
    config.offline = False  # True: open no connection; if a library tries to, the run ends with an error
    config.overwrite = False  # True: replace what is in the output folder
    config.credentialed = False  # True if the model saw data under a use agreement; the model card then says so
    return config
