"""Fine-tune a checkpoint on few examples, or continue its pretraining on raw text.

python -m clinmerge_jax.main --config=configs/sft.py[:lora|:full|:uf_lora|:pretrain|:runlocal|:grid] \
    --config.model=DIR --config.task=mts_dialog --config.data_dir=DIR --config.shots=64 --config.output=DIR

The task is the name of one that evaluate asks (mts_dialog, NAME@SPLIT, a task of your own by config.own), learned in
the prompts in which it is asked; or a file: JSON lines, a JSON array, CSV, TSV or Parquet, each also .gz, with
"messages", "conversations", "prompt" and "completion", "input" and "output", or "text"; a .txt file or a folder of
them; tfds:NAME[:SPLIT]; or miniature:clinical or miniature:instruct. Several are separated by commas. Of prompts with
an answer the answer alone is learned, of raw text all.

lora (the default) trains a LoRA adapter and writes it in PEFT's layout; full trains every weight; uf_lora is the recipe
that the University of Florida's group published for its extraction tasks; pretrain is continued pretraining on raw
text; runlocal is a run of seconds. Killed or stopped, the same command goes on where it was.

grid trains many runs of equal shape at once, in one program, and gives each a folder below the output, such as
shots-16/seed-0, as it is done:
python -m clinmerge_jax.main --config=configs/sft.py:grid --config.grid.seeds=0,1,2 --config.grid.shots=16,64
It trains adapters; --config.lora.rank=0 --config.learning_rate=1e-5 trains all weights of small models.
"""

from ml_collections import ConfigDict

from clinmerge_jax.config_argument import parse
from clinmerge_jax.tasks.own_fields import own_fields

_ALL_LINEAR = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"


def get_config(arg: str = "") -> ConfigDict:
    """Strict: one of those above."""
    variant = parse(arg, ("", "lora", "full", "uf_lora", "pretrain", "runlocal", "grid")) or "lora"
    config = ConfigDict()
    config.job = "sft"
    config.model = "miniature:clinical"
    config.output = f"runs/sft-{variant}"
    config.offline = False  # True: no connection is opened, and one that a library tries ends the run
    config.overwrite = False
    config.resume = True  # False: what an interrupted run has left is not used
    config.seed = 0  # of the choice of examples, their order, the adapter's start and its dropout
    config.credentialed = False  # True where the examples are under a use agreement
    config.mesh = ConfigDict({"data": 0, "fsdp": 0, "tensor": 0})

    # What is learned.
    config.task = "miniature:instruct"  # names of tasks as evaluate has them, or files; several by commas, NAME=SHARE
    config.data_dir = ""  # where the files of the tasks' data sets lie, or the data sets of tfds:
    config.cache = ""  # where prepared records of the former go; empty: beside the data
    # Columns of the files of task and validation, such as "prompt={dialogue}; completion={note}; id={note_id}".
    config.fields = ""
    config.shots = 0  # examples that are chosen; 0: all
    config.label = ""  # a column of the files: its values are as evenly chosen as can be
    config.chat_template = True  # prompts and completions as messages of a conversation
    config.answer = "letter"  # what of a choice is learned; text: the letter and the option's text
    config.length = 512  # tokens of the longest row; 0: the model's context, 4096 at most
    config.too_long = "cut"  # inputs lose their end so that the answer fits; or refuse
    # step: a step's examples lie side by side in few rows, blind to one another; none: each has a row of its own; auto:
    # step, or none where the attention needs it; set: all examples fill rows once, and batch_size counts these rows.
    config.packing = "auto"
    config.validation = ""  # held-out examples likewise, such as mts_dialog@valid; nothing is learned from them
    # Further examples, a map of their columns, and how much of each step they are.
    config.replay = ConfigDict({"task": "", "fields": "", "share": 0.25})

    config.own = own_fields()  # a task of your own, as evaluate has it

    # For how long and how.
    config.epochs = 3.0
    config.steps = 0  # 0: as many as the epochs take
    config.batch_size = 16  # examples of a step
    config.micro_batch = 0  # rows that are computed at a time, to save memory; 0: all of a step
    config.learning_rate = 2e-4
    config.final_share = 0.1  # of the learning rate, at the end
    config.schedule = "cosine"  # or linear, constant
    config.warmup_share = 0.1  # of the steps, in which the learning rate rises
    config.warmup_steps = 0  # over 0: so many steps instead
    config.weight_decay = 0.01
    config.beta1 = 0.9
    config.beta2 = 0.999
    config.eps = 1e-8
    config.clip_norm = 1.0  # 0: any
    config.first_moment = ""  # its dtype; empty: float32, as the weights and the second moment
    config.dtype = "auto"  # of the computation: bfloat16 on accelerators, float32 on CPUs
    config.remat = "none"  # what is computed again in the backward pass: none, dots, full
    config.attention = "auto"  # the kernel: reference, splash (TPU), cudnn (GPU, an example a row), auto

    # What is trained.
    config.lora = ConfigDict(
        {"rank": 16, "alpha": 32.0, "dropout": 0.0, "targets": _ALL_LINEAR, "rank_stabilized": False}
    )
    config.merge_adapter = False  # True: the result is the whole model with the adapter in it
    config.freeze = ""  # a regular expression: tensors in whose names it is found stay as they are

    # Against forgetting.
    config.kl = 0.0  # times KL(start || model) on the target tokens
    config.l2 = 0.0  # times half the squared distance to the start
    config.wise_ft = 1.0  # how far from the start to what was trained the result lies

    # Which step is the result, and what is kept on the way.
    config.validate_every = 0  # steps; 0: at the end alone
    config.patience = 0  # validations without a new least loss that end the training; 0: none do
    config.select = "last"  # or best, of the least validation loss
    config.save_every = 50  # steps
    config.keep_last = 2

    if variant in ("full", "pretrain", "runlocal"):
        config.lora.rank = 0
        config.learning_rate = 1e-5
    if variant == "uf_lora":  # what is known of it; epochs and warm-up come with the steps
        config.lora.update({"rank": 256, "alpha": 512.0, "dropout": 0.2, "targets": "q_proj,k_proj,v_proj"})
        config.learning_rate = 1e-4
        config.final_share = 0.0
        config.warmup_steps = 50
        config.steps = 300
        config.beta2 = 0.98
        config.length = 0
    if variant == "pretrain":
        config.model = "miniature:instruct"
        config.task = "miniature:clinical"
        config.chat_template = False
        config.packing = "set"
        config.epochs = 1.0
    if variant == "runlocal":
        config.shots = 64
        config.epochs = 1.0
        config.learning_rate = 1e-3
        config.length = 256
    if variant == "grid":
        config.job = "sft_grid"
        config.grid = ConfigDict()
        config.grid.seeds = (0, 1, 2)
        config.grid.shots = (16, 64)  # 0: all
        config.grid.learning_rates = ()  # none: config.learning_rate alone
        config.grid.at_once = 0  # runs that go on at a time, a multiple of the devices; 0: eight on each, or fewer
        for field in (
            "seed",
            "shots",
            "resume",
            "save_every",
            "keep_last",
        ):  # finished runs are kept, no step on the way
            del config[field]
    return config
