"""The miniature: three small Llamas trained from generated text.

python -m clinmerge_jax.main --config=configs/miniature.py

The models that ship with the package were made with
--config.output=clinmerge_jax/miniature/models --config.overwrite=True.
"""

from ml_collections import ConfigDict

from clinmerge_jax.config_argument import parse


def get_config(arg: str = "") -> ConfigDict:
    """The config; "" is for the models that ship, "runlocal" for a smaller run of seconds."""
    variant = parse(arg, ("", "runlocal"))
    config = ConfigDict()
    config.job = "miniature"
    config.output = "runs/miniature"
    config.overwrite = False  # True: replace what is in the output folder
    config.seed = 0  # of the text, the initial weights and the order of training
    # Shape of all three models, as in config.json.
    config.model = ConfigDict(
        {
            "vocab_size": 1024,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "initializer_range": 0.02,
            "tie_word_embeddings": True,
        }
    )
    config.length = 256  # tokens of a row
    config.batch_size = 16  # rows of a step
    # By model: how many documents are generated, and the training on them; final_share is the share of the learning
    # rate that is left at the end.
    config.stages = ConfigDict(
        {
            "base": {"documents": 24000, "epochs": 1.0, "learning_rate": 3e-3, "final_share": 0.1},
            "clinical": {"documents": 8000, "epochs": 1.0, "learning_rate": 5e-4, "final_share": 0.02},
            "instruct": {"documents": 10000, "epochs": 1.0, "learning_rate": 5e-4, "final_share": 0.02},
        }
    )
    if variant == "runlocal":
        config.model.update({"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2})
        config.output = "runs/miniature-runlocal"
        for stage in config.stages.values():
            stage.documents = 400
    return config
