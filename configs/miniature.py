"""The miniature: three small Llamas trained from generated text.

python -m clinmerge_jax.main --config=configs/miniature.py[:controls|:runlocal] [--config.seed=N --config.output=DIR]
python -m clinmerge_jax.main --config=configs/miniature.py:page [--config.output=PAGE.md]

Another seed makes another family: other text, other initial weights, another order, but the same facts.

The models that ship with the package were made with
--config.output=clinmerge_jax/miniature/models --config.overwrite=True.
"""

from ml_collections import ConfigDict

from clinmerge_jax.config_argument import parse


def get_config(arg: str = "") -> ConfigDict:
    """The config; "" is for the models that ship, "controls" adds two, "runlocal" is a smaller run of seconds."""
    variant = parse(arg, ("", "controls", "page", "runlocal"))
    if variant == "page":
        return _page()
    config = ConfigDict()
    config.job = "miniature"
    config.output = "runs/miniature"
    config.overwrite = False  # True: replace what is in the output folder
    config.seed = 0  # of the text, the initial weights and the order of training
    # Shape of all three models, as in config.json.
    config.model = ConfigDict(
        {
            "vocab_size": 1280,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500.0,
            "initializer_range": 0.09,
            "tie_word_embeddings": True,
        }
    )
    config.length = 256  # tokens of a row
    config.batch_size = 8  # rows of a step
    # The models to train, in this order; the controls are "joint", trained on both sides' text at once, and
    # "instruct_again", instruct from text of another seed.
    config.models = "copying,base,clinical,instruct" + ",joint,instruct_again" * (variant == "controls")
    # By model: what it starts from, how many documents of each corpus it is trained on, what is added to the seed, and
    # the training; final_share is the share of the learning rate that is left at the end.
    fine_tuning = {"start": "base", "seed": 0, "epochs": 1.0, "learning_rate": 1e-3, "final_share": 0.02}
    config.stages = ConfigDict(
        {
            "copying": {
                "start": "", "documents": {"copying": 18000}, "seed": 0, "epochs": 1.0, "learning_rate": 3e-3,
                "final_share": 1.0,
            },
            "base": {
                "start": "copying", "documents": {"base": 48000}, "seed": 0, "epochs": 1.0, "learning_rate": 3e-3,
                "final_share": 0.05,
            },
            "clinical": {**fine_tuning, "documents": {"clinical": 24000}},
            "instruct": {**fine_tuning, "documents": {"instruct": 20000}},
            "joint": {**fine_tuning, "documents": {"clinical": 24000, "instruct": 20000}},
            "instruct_again": {**fine_tuning, "documents": {"instruct": 20000}, "seed": 1000},
        }
    )  # fmt: skip
    if variant == "runlocal":
        config.model.update({"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2})
        config.output = "runs/miniature-runlocal"
        for stage in config.stages.values():
            for corpus in stage.documents:
                stage.documents[corpus] = 400
    return config


def _page() -> ConfigDict:
    """A page with one example of every corpus and every task."""
    config = ConfigDict()
    config.job = "miniature_page"
    config.seed = 0  # of the corpora's text
    config.output = "runs/miniature.md"
    return config
