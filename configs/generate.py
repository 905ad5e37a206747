"""Generate answers to a file of prompts.

python -m clinmerge_jax.main --config=configs/generate.py \
    --config.model=DIR --config.prompts=FILE.jsonl --config.output=DIR

Prompts are JSON lines, a JSON array, CSV, TSV or Parquet (each perhaps .gz) with "prompt", "messages" or ShareGPT's
"conversations" (and perhaps "id"), or a .txt file with a prompt a line. Other columns are mapped:
--config.fields="prompt={question}; id={question_id}". The result holds answers.jsonl in the order of the prompts. A run
that is killed goes on where it was.
"""

from ml_collections import ConfigDict

from clinmerge_jax.config_argument import parse


def get_config(arg: str = "") -> ConfigDict:
    """Strict: there are no variants."""
    parse(arg, ("",))
    config = ConfigDict()
    config.job = "generate"
    config.model = (
        "miniature:instruct"  # a folder, org/name[@revision] on the hub, gs://... or s3://..., miniature:NAME
    )
    config.prompts = "miniature:chat"  # a file; the miniature's held-out questions
    config.fields = ""  # columns of the prompts, such as "prompt={question}; id={question_id}"
    config.chat_template = False  # True puts raw prompts into the chat template as a user's message
    config.max_new_tokens = 64
    config.temperature = 0.0  # 0 is greedy
    config.top_k = 0  # 0 for all
    config.top_p = 1.0
    config.min_p = 0.0
    config.repetition_penalty = 1.0
    config.stop = ()  # texts that end an answer, beside the stop ids of generation_config.json
    config.seed = 0  # of the draws; each prompt has one of its own, which follows from this and its place
    config.dtype = ""  # of the computation: float32, bfloat16; "" is the checkpoint's
    config.int8_weights = False  # the layers' matrices in int8 with a scale for each row: half the bytes of bfloat16
    config.int8_cache = False  # keys and values likewise, with a scale for each head and position
    config.attention = "auto"  # of the decode steps: reference, ragged (TPU; reads what each row has filled), auto
    config.slots = 16  # answers that are generated at once
    config.length = 0  # the most tokens of a prompt and its answer; 0 is what the prompts need
    config.too_long = "refuse"  # or cut: a prompt that is too long loses its end
    config.limit = 0  # only so many prompts, from the first on; 0 for all
    config.mesh = ConfigDict({"data": 0, "fsdp": 0, "tensor": 0})  # devices along each axis; 0 leaves it to be picked
    config.output = "runs/generate"
    config.offline = False  # True: no connection is opened, and one that a library tries ends the run
    config.overwrite = False
    return config
