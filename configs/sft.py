"""Continue a checkpoint on text.

python -m clinmerge_jax.main --config=configs/sft.py:pretrain \
    --config.model=DIR --config.text=FILE.jsonl --config.output=DIR

The text is JSON lines with a "text" or a "messages" field; of conversations only answers are
learned. This is the plain single-device loop that also trained the miniature.
"""

from ml_collections import ConfigDict

from clinmerge_jax.config_argument import parse


def get_config(arg: str = "") -> ConfigDict:
    """Strict: "pretrain" (the default) is the one variant."""
    parse(arg, ("", "pretrain"))
    config = ConfigDict()
    config.job = "sft"
    config.model = "miniature:instruct"
    config.text = "miniature:clinical"
    config.output = "runs/sft-pretrain"
    config.overwrite = False
    config.seed = 0
    config.epochs = 1.0
    config.steps = 0  # 0: as many as the epochs take
    config.length = 128
    config.batch_size = 16
    config.learning_rate = 1e-3
    config.final_learning_rate = 1e-5
    config.credentialed = False  # True where the text is under a use agreement
    return config
