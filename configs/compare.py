"""Compare a model here with the same model in PyTorch: logits, hidden states layer by layer, greedy answers.

python -m clinmerge_jax.main --config=configs/compare.py --config.model=DIR [--config.prompts=FILE.jsonl]

Needs torch (`pip install clinmerge_jax[reference]`).
"""

from ml_collections import ConfigDict

from clinmerge_jax.config_argument import parse


def get_config(arg: str = "") -> ConfigDict:
    """Strict: there are no variants."""
    parse(arg, ("",))
    config = ConfigDict()
    config.job = "compare"
    config.model = (
        "miniature:instruct"  # a folder, org/name[@revision] on the hub, gs://... or s3://..., miniature:NAME
    )
    config.prompts = "miniature:chat"  # a file as configs/generate.py takes it
    config.chat_template = False
    config.fields = ""  # columns of the prompts, likewise
    config.too_long = "refuse"  # or cut, likewise
    config.limit = 8  # prompts, from the first on; 0 for all
    config.max_new_tokens = 32  # of the greedy answers
    config.dtype = "float32"  # of both computations: float32 or bfloat16
    config.attention = "auto"  # of the logits: reference, splash (TPU), cudnn (GPU, bfloat16), auto
    config.layers = True  # hidden states layer by layer, where both models fit into memory
    config.output = "runs/compare"
    config.overwrite = False
    return config
