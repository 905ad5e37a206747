"""Generate answers to a file of prompts.

python -m clinmerge_jax.main --config=configs/generate.py \
    --config.model=DIR --config.prompts=FILE.jsonl --config.output=DIR

Prompts are JSON lines, a JSON array, CSV, TSV or Parquet (each perhaps .gz) with "prompt", "messages" or ShareGPT's
"conversations" (and perhaps "id"), or a .txt file with one prompt per line. Other columns are mapped:
--config.fields="prompt={question}; id={question_id}". The result has answers.jsonl in the order of the prompts. A
killed run continues where it was.
"""

from ml_collections import ConfigDict

from clinmerge_jax.config_argument import parse


def get_config(arg: str = "") -> ConfigDict:
    """The config; this job has no variants, so any argument is refused."""
    parse(arg, ("",))
    config = ConfigDict()
    config.job = "generate"
    config.model = (
        "miniature:instruct"  # a folder, org/name[@revision] on the hub, gs://... or s3://..., or miniature:NAME
    )
    config.prompts = "miniature:chat"  # a file, or miniature:chat for the miniature's held-out questions
    config.fields = ""  # maps columns, such as "prompt={question}; id={question_id}"; "": the names above
    config.chat_template = False  # True: put raw prompts into the chat template as a user's message
    config.max_new_tokens = 64  # the most tokens of an answer
    config.temperature = 0.0  # 0: greedy
    config.top_k = 0  # sample from the k likeliest tokens; 0: from all
    config.top_p = 1.0  # sample from the likeliest tokens whose probabilities add up to this; 1: from all
    config.min_p = 0.0  # leave out tokens less likely than this times the likeliest; 0: none
    config.repetition_penalty = 1.0  # over 1 makes tokens that have occurred less likely; 1: off
    config.stop = ()  # texts that end an answer, in addition to the stop ids of generation_config.json
    config.seed = 0  # of sampling; each prompt's own seed is derived from this and its index
    config.dtype = ""  # of the computation: float32 or bfloat16; "": the checkpoint's
    config.int8_weights = False  # True: layers' matrices in int8 with a scale per row; half of bfloat16
    config.int8_cache = False  # True: keys and values in int8, with a scale for each head and position
    config.attention = "auto"  # kernel of decode steps: reference, ragged (TPU; reads only filled positions), or auto
    config.slots = 16  # answers that are generated at the same time
    config.length = 0  # the most tokens of a prompt with its answer; 0: as many as the prompts need
    config.too_long = "refuse"  # what happens to a prompt that is too long: refuse, or cut (it loses its end)
    config.limit = 0  # how many prompts, from the first on; 0: all
    config.mesh = ConfigDict({"data": 0, "fsdp": 0, "tensor": 0})  # devices along each axis; 0: chosen
    config.output = "runs/generate"
    config.offline = False  # True: open no connection; if a library tries to, the run ends with an error
    config.overwrite = False  # True: replace what is in the output folder
    return config
