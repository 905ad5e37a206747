"""Measure against the floor and the peer.

python -m clinmerge_jax.main --config=configs/benchmark.py\
[:merge|:merge_methods|:merge_on_device|:merge_on_device_8b|:load|:orbax|:decode|:decode_tiny|:decode_8b|:grid] \
    [--config.peer_python=PYTHON_WITH_MERGEKIT] [--config.output=FOLDER_ON_THE_DISK_TO_MEASURE]
python -m clinmerge_jax.main --config=configs/benchmark.py[:train|:train_1b|:train_8b|:few_shot] \
    [--config.peer_python=PYTHON_WITH_PEFT]
python -m clinmerge_jax.main --config=configs/benchmark.py:score --config.data_dir=DIR [--config.cache=DIR]

merge: two checkpoints of 1.5e9 parameters, streaming, whole processes. merge_methods: the same by the methods that need
more of a tensor than its sums, most of them with a base as third input. merge_on_device: two such models in device
memory, one t after another; merge_on_device_8b: the same in Llama-3.1-8B's shape. load: an 8B-shaped checkpoint (16 GB)
onto eight devices and back to disk. orbax: the same checkpoint into an Orbax folder, and from there onto eight devices.
decode: generation with a model of 110e6 parameters in float32; decode_tiny: with one of stories260K's shape, at batch
16; decode_8b: with one of Llama-3.1-8B's shape in bfloat16. grid: the miniature fine-tuned for 8 seeds and 4 numbers of
examples, at once and one by one. train: steps of training with 110e6 parameters in float32, all of them and an adapter;
train_1b: all of 1.5e9, computed in bfloat16; train_8b: an adapter in Llama-3.1-8B's shape, rows of 4,096. few_shot: an
epoch of examples as long as MTS-Dialog's, in SmolLM2-135M's shape in float32, an adapter and all weights. score: stored
answers to seven test sets, with 10,000 draws of the bootstrap for every score.
"""

from ml_collections import ConfigDict

from clinmerge_jax.benchmark.measuring.shapes import LLAMA_1B, LLAMA_8B
from clinmerge_jax.config_argument import parse

LLAMA_110M = {
    **LLAMA_8B, "vocab_size": 32000, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 12, "num_key_value_heads": 12, "head_dim": 64, "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}  # fmt: skip
SMOLLM2_135M = {
    **LLAMA_8B, "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64, "max_position_embeddings": 8192,
    "rope_theta": 100000.0, "tie_word_embeddings": True, "torch_dtype": "float32",
}  # fmt: skip
# stories260K's shape.
LLAMA_TINY = {
    **LLAMA_110M, "vocab_size": 512, "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 5,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8, "max_position_embeddings": 512,
}  # fmt: skip


METHODS = (
    "task_arithmetic", "ties", "dare_linear", "dare_ties", "della", "breadcrumbs", "sce", "model_stock", "nuslerp",
    "multislerp", "karcher", "nearswap", "ram", "arcee_fusion", "passthrough",
)  # fmt: skip


def get_config(arg: str = "") -> ConfigDict:
    """Strict: one of those above; "merge" is the default."""
    known = (
        "", "merge", "merge_methods", "merge_on_device", "merge_on_device_8b", "load", "orbax", "decode",
        "decode_tiny", "decode_8b", "grid", "train", "train_1b", "train_8b", "few_shot", "score",
    )  # fmt: skip
    variant = parse(arg, known) or "merge"
    config = ConfigDict()
    config.job = "benchmark"
    config.what = variant.removesuffix("_8b").removesuffix("_tiny").removesuffix("_1b").removesuffix("_methods")
    config.output = f"runs/benchmark-{variant}"
    config.repeats = 1 if variant in ("merge_methods", "grid", "few_shot") else 3
    if variant == "score":
        config.data_dir = ""  # of the published files
        config.cache = ""  # for prepared records, where the first is read-only
        config.tasks = (
            "mts_dialog@test1,mts_dialog@test2,aci_bench@test1,aci_bench@test2,aci_bench@test3,medqa_4options,pubmedqa"
        )
        config.draws = 10_000
        config.seed = 0  # of the answers
        return config
    if variant == "grid":
        config.model = "miniature:clinical"
        config.task = "miniature:instruct"
        config.seeds = tuple(range(8))
        config.shots = (16, 32, 64, 128)
        config.launched = 1  # seeds of each number of examples that are launched as runs of their own
        config.epochs = 1.0
        config.batch_size = 8
        config.length = 256
        config.learning_rate = 1e-5
        return config
    if variant == "few_shot":
        config.model = ConfigDict(SMOLLM2_135M)
        config.weights = ("lora", "full")
        config.rank = 16  # of the adapter, beside every linear layer
        config.shots = 64  # one epoch of them is trained
        config.batch_size = 8
        config.length = 1024
        config.product = 2048  # rows of the matrices whose product is the peak
        config.peer_python = ""  # a Python with torch, transformers and PEFT; empty: this one
        return config
    config.model = ConfigDict(LLAMA_8B if variant in ("merge_on_device_8b", "load", "orbax") else LLAMA_1B)
    if config.what == "decode":
        large = variant == "decode_8b"
        config.model = ConfigDict({"decode": LLAMA_110M, "decode_tiny": LLAMA_TINY, "decode_8b": LLAMA_8B}[variant])
        config.dtype = "bfloat16" if large else "float32"
        config.batches = {"decode": (1, 16), "decode_tiny": (16,), "decode_8b": (1, 8, 64, 256)}[variant]
        config.prompt = 512 if large else 64
        config.new = {"decode": 64, "decode_tiny": 200, "decode_8b": 128}[variant]
        config.product = 8192 if large else 2048  # rows of the matrices whose product is the peak
        config.attention = "auto"  # of the decode steps: reference, ragged (TPU), auto
        config.peer = True  # transformers on the same device
        config.peer_compiled = large  # it too with a static cache, compiled
    if config.what == "train":
        large = variant != "train"
        config.model = ConfigDict({"train": LLAMA_110M, "train_1b": LLAMA_1B, "train_8b": LLAMA_8B}[variant])
        config.weights = {"train": ("full", "lora"), "train_1b": ("full",), "train_8b": ("lora",)}[variant]
        config.rank = 16  # of the adapter, beside every linear layer
        config.shapes = {"train": ((4, 256), (1, 512)), "train_1b": ((4, 2048),), "train_8b": ((1, 4096),)}[variant]
        config.steps = 10 if large else 2  # that are timed in each repeat, after one that is not
        config.dtype = "bfloat16" if large else "float32"  # of the computation; trained weights are float32
        config.remat = "none"  # or dots, full; the peer checkpoints its layers where it is not none
        config.attention = "auto"  # reference, splash (TPU), cudnn (GPU), auto
        config.product = 8192 if large else 2048  # rows of the matrices whose product is the peak
        config.peer = True  # transformers, and PEFT for the adapter, on the same device
        config.peer_python = ""  # a Python with torch, transformers and PEFT; empty: this one
        config.peer_compiled = large  # it through torch.compile too
    if config.what.startswith("merge"):
        config.methods = METHODS if variant == "merge_methods" else ("linear", "slerp")
        config.drift = 0.03  # relative size of the difference between the two
    if config.what != "merge":
        config.mesh = ConfigDict({"data": 0, "fsdp": 0, "tensor": 0})
    if config.what == "merge":
        config.peer_python = ""  # a Python with third_party/peers/requirements-mergekit.txt installed
    if config.what == "merge_on_device":
        config.points = 7  # values of t in each repeat
    if config.what in ("load", "orbax"):
        config.cpu_devices = 8  # fake devices on the processor; 0 takes the accelerators that are there
    return config
