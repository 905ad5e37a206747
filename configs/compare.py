"""Compare a model with the same checkpoint in PyTorch: logits, hidden states layer by layer, greedy answers.

python -m clinmerge_jax.main --config=configs/compare.py --config.model=DIR [--config.prompts=FILE.jsonl]

Needs torch (`pip install clinmerge_jax[reference]`).
"""

from ml_collections import ConfigDict

from clinmerge_jax.config_argument import parse


def get_config(arg: str = "") -> ConfigDict:
    """The config; this job has no variants, so any argument is refused."""
    parse(arg, ("",))
    config = ConfigDict()
    config.job = "compare"
    config.model = (
        "miniature:instruct"  # a folder, org/name[@revision] on the hub, gs://... or s3://..., or miniature:NAME
    )
    config.prompts = "miniature:chat"  # a file of prompts, as in configs/generate.py
    config.chat_template = False  # True: put raw prompts into the chat template as a user's message
    config.fields = ""  # columns of the prompts file, as in configs/generate.py
    config.too_long = "refuse"  # refuse or cut prompts that are too long, as in configs/generate.py
    config.limit = 8  # how many prompts, from the first on; 0: all
    config.max_new_tokens = 32  # the most tokens of each greedy answer
    config.dtype = "float32"  # of both computations: float32 or bfloat16
    config.attention = "auto"  # kernel for the logits: reference, splash (TPU), cudnn (GPU, bfloat16), or auto
    config.layers = True  # also compare hidden states layer by layer; both models must fit into memory
    config.output = "runs/compare"
    config.overwrite = False  # True: replace what is in the output folder
    return config
