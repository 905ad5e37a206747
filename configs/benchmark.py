"""Measure against the floor and the peer.

python -m clinmerge_jax.main --config=configs/benchmark.py:merge \
    [--config.peer_python=PYTHON_WITH_MERGEKIT] [--config.output=FOLDER_ON_THE_DISK_TO_MEASURE]
"""

from ml_collections import ConfigDict

from clinmerge_jax.config_argument import parse


def get_config(arg: str = "") -> ConfigDict:
    """Strict: "merge" (the default) is the one benchmark."""
    config = ConfigDict()
    config.job = "benchmark"
    config.what = parse(arg, ("", "merge")) or "merge"
    config.output = f"runs/benchmark-{config.what}"
    config.methods = ("linear", "slerp")
    config.repeats = 3
    config.peer_python = ""  # a Python with third_party/peers/requirements-mergekit.txt installed
    config.drift = 0.03  # relative size of the difference between the two
    # Llama-3.2-1B with an embedding and a head of their own: 1.5e9 parameters.
    config.model = ConfigDict(
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": 128256,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "hidden_act": "silu",
            "max_position_embeddings": 131072,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        }
    )
    return config
