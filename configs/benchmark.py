"""Measure this package against a floor and, where there is one, a peer program.

python -m clinmerge_jax.main --config=configs/benchmark.py\
[:merge|:merge_methods|:merge_on_device|:merge_on_device_8b|:load|:orbax|:decode|:decode_tiny|:decode_8b|:grid] \
    [--config.peer_python=PYTHON_WITH_MERGEKIT] [--config.output=FOLDER_ON_THE_DISK_TO_MEASURE]
python -m clinmerge_jax.main --config=configs/benchmark.py[:train|:train_1b|:train_8b|:few_shot] \
    [--config.peer_python=PYTHON_WITH_PEFT]
python -m clinmerge_jax.main --config=configs/benchmark.py:score --config.data_dir=DIR [--config.cache=DIR]

merge (the default): linear and slerp of two checkpoints of 1.5e9 parameters, streaming, as whole processes.
merge_methods: the same by methods that need more of a tensor than its sums, most of them with a base as third input.
merge_on_device: merges of two such models in device memory, one t after another.
merge_on_device_8b: the same in Llama-3.1-8B's shape.
load: an 8B-shaped checkpoint (16 GB) onto eight devices and back to disk.
orbax: the same checkpoint into an Orbax folder, and from there onto eight devices.
decode: generation with a model of 110e6 parameters in float32.
decode_tiny: generation with a model of stories260K's shape, at batch 16.
decode_8b: generation with a model of Llama-3.1-8B's shape in bfloat16.
grid: the miniature fine-tuned for 8 seeds and 4 numbers of examples, as one grid and with a launch for each run.
train: training steps with 110e6 parameters in float32, of all weights and of an adapter.
train_1b: training steps of all of 1.5e9 weights, computed in bfloat16.
train_8b: training steps of an adapter in Llama-3.1-8B's shape, with rows of 4,096 tokens.
few_shot: an epoch of examples as long as MTS-Dialog's, in SmolLM2-135M's shape in float32, an adapter and all weights.
score: scoring of stored answers to seven test sets, with 10,000 bootstrap draws for each score.
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
# The shape of stories260K.
LLAMA_TINY = {
    **LLAMA_110M, "vocab_size": 512, "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 5,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8, "max_position_embeddings": 512,
}  # fmt: skip


METHODS = (
    "task_arithmetic", "ties", "dare_linear", "dare_ties", "della", "breadcrumbs", "sce", "model_stock", "nuslerp",
    "multislerp", "karcher", "nearswap", "ram", "arcee_fusion", "passthrough",
)  # fmt: skip


def get_config(arg: str = "") -> ConfigDict:
    """The config of one of the variants above; "" is "merge", and any other argument is refused."""
    known = (
        "", "merge", "merge_methods", "merge_on_device", "merge_on_device_8b", "load", "orbax", "decode",
        "decode_tiny", "decode_8b", "grid", "train", "train_1b", "train_8b", "few_shot", "score",
    )  # fmt: skip
    variant = parse(arg, known) or "merge"
    config = ConfigDict()
    config.job = "benchmark"
    config.what = variant.removesuffix("_8b").removesuffix("_tiny").removesuffix("_1b").removesuffix("_methods")
    config.output = f"runs/benchmark-{variant}"  # folder on the disk to measure
    # How often everything is measured; tables show medians over the repeats.
    config.repeats = 1 if variant in ("merge_methods", "grid", "few_shot") else 3
    if variant == "score":
        config.data_dir = ""  # folder with the published files of the data sets
        config.cache = ""  # folder for prepared records if data_dir is read-only; "": data_dir/prepared
        config.tasks = (
            "mts_dialog@test1,mts_dialog@test2,aci_bench@test1,aci_bench@test2,aci_bench@test3,medqa_4options,pubmedqa"
        )
        config.draws = 10_000  # bootstrap draws for each score
        config.seed = 0  # of the random answers
        return config
    if variant == "grid":
        # One run for each seed and number of examples; the other fields are those of configs/sft.py.
        config.model = "miniature:clinical"
        config.task = "miniature:instruct"
        config.seeds = tuple(range(8))
        config.shots = (16, 32, 64, 128)  # numbers of examples
        config.launched = 1  # seeds for each number of examples that are measured as separate launches
        config.epochs = 1.0
        config.batch_size = 8
        config.length = 256
        config.learning_rate = 1e-5
        return config
    if variant == "few_shot":
        config.model = ConfigDict(SMOLLM2_135M)
        config.weights = ("lora", "full")  # what is trained: an adapter, all weights, or both
        config.rank = 16  # of the adapter, on every linear layer
        config.shots = 64  # examples of the epoch, a multiple of batch_size
        config.batch_size = 8
        config.length = 1024  # the most tokens of an example
        config.product = 2048  # rows of the square matrices whose product gives the peak speed
        config.peer_python = ""  # a Python with torch, transformers and PEFT; "": this one
        return config
    config.model = ConfigDict(LLAMA_8B if variant in ("merge_on_device_8b", "load", "orbax") else LLAMA_1B)
    if config.what == "decode":
        large = variant == "decode_8b"
        config.model = ConfigDict({"decode": LLAMA_110M, "decode_tiny": LLAMA_TINY, "decode_8b": LLAMA_8B}[variant])
        config.dtype = "bfloat16" if large else "float32"
        # Batch sizes, tokens of each prompt, and new tokens for each prompt.
        config.batches = {"decode": (1, 16), "decode_tiny": (16,), "decode_8b": (1, 8, 64, 256)}[variant]
        config.prompt = 512 if large else 64
        config.new = {"decode": 64, "decode_tiny": 200, "decode_8b": 128}[variant]
        config.product = 8192 if large else 2048  # rows of the square matrices whose product gives the peak speed
        config.attention = "auto"  # kernel of the decode steps: reference, ragged (TPU), or auto
        config.peer = True  # also measure transformers on the same device
        config.peer_compiled = large  # also measure transformers compiled with a static cache
    if config.what == "train":
        large = variant != "train"
        config.model = ConfigDict({"train": LLAMA_110M, "train_1b": LLAMA_1B, "train_8b": LLAMA_8B}[variant])
        config.weights = {"train": ("full", "lora"), "train_1b": ("full",), "train_8b": ("lora",)}[variant]
        config.rank = 16  # of the adapter, on every linear layer
        # Shapes of a batch: (rows, tokens of a row).
        config.shapes = {"train": ((4, 256), (1, 512)), "train_1b": ((4, 2048),), "train_8b": ((1, 4096),)}[variant]
        config.steps = 10 if large else 2  # timed steps of each repeat, after a first one that compiles
        config.dtype = "bfloat16" if large else "float32"  # of the computation; trained weights are float32
        config.remat = "none"  # none, dots or full; unless it is none, the peer checkpoints its layers
        config.attention = "auto"  # reference, splash (TPU), cudnn (GPU), or auto
        config.product = 8192 if large else 2048  # rows of the square matrices whose product gives the peak speed
        config.peer = True  # also measure transformers, with PEFT for the adapter, on the same device
        config.peer_python = ""  # a Python with torch, transformers and PEFT; "": this one
        config.peer_compiled = large  # also measure the peer with torch.compile
    if config.what.startswith("merge"):
        config.methods = METHODS if variant == "merge_methods" else ("linear", "slerp")
        config.drift = 0.03  # relative size of the difference between the models
    if config.what != "merge":
        config.mesh = ConfigDict({"data": 0, "fsdp": 0, "tensor": 0})  # devices along each axis; 0: chosen
    if config.what == "merge":
        config.peer_python = ""  # a Python with third_party/peers/requirements-mergekit.txt; "": no peer
    if config.what == "merge_on_device":
        config.points = 7  # values of t in each repeat
    if config.what in ("load", "orbax"):
        config.cpu_devices = 8  # simulated devices on the CPU; 0: use the accelerators of this machine
    return config
