"""Fine-tune a checkpoint on few examples, or continue its pretraining on raw text.

python -m clinmerge_jax.main --config=configs/sft.py[:lora|:full|:uf_lora|:pretrain|:runlocal|:grid] \
    --config.model=DIR --config.task=mts_dialog --config.data_dir=DIR --config.shots=64 --config.output=DIR

A task is one of
* a task of the job evaluate (mts_dialog, NAME@SPLIT, a task of your own by config.own), trained on the same prompts;
* a file: JSON lines, a JSON array, CSV, TSV or Parquet, each also .gz, with "messages", "conversations", "prompt" and
  "completion", "input" and "output", or "text"; a .txt file or a folder of them;
* tfds:NAME[:SPLIT]; miniature:clinical or miniature:instruct.
Several are separated by commas. Of a prompt with an answer only the answer is learned, of raw text everything.

lora (the default): a LoRA adapter, written in PEFT's layout.
full: every weight.
uf_lora: the recipe that the University of Florida's group published for its extraction tasks.
pretrain: continued pretraining on raw text.
runlocal: a run of seconds.
After a kill or SIGTERM the same command continues the run.

grid trains many runs of equal shape at once, in one program, and writes each into a folder below the output, such as
shots-16/seed-0, as soon as it is done:
python -m clinmerge_jax.main --config=configs/sft.py:grid --config.grid.seeds=0,1,2 --config.grid.shots=16,64
It trains adapters; --config.lora.rank=0 --config.learning_rate=1e-5 trains all weights of small models.
"""

from ml_collections import ConfigDict

from clinmerge_jax.config_argument import parse
from clinmerge_jax.tasks.own_fields import own_fields

_ALL_LINEAR = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"


def get_config(arg: str = "") -> ConfigDict:
    """The config of one of the variants above; "" is "lora", and any other argument is refused."""
    variant = parse(arg, ("", "lora", "full", "uf_lora", "pretrain", "runlocal", "grid")) or "lora"
    config = ConfigDict()
    config.job = "sft"
    # The start: a folder, org/name[@revision] on the hub, gs://... or s3://..., or miniature:NAME.
    config.model = "miniature:clinical"
    config.output = f"runs/sft-{variant}"
    config.offline = False  # True: open no connection; if a library tries to, the run ends with an error
    config.overwrite = False  # True: replace what is in the output folder
    config.resume = True  # False: discard the saved steps of an interrupted run
    config.seed = 0  # of the choice of examples, their order, the adapter's initial weights and its dropout
    config.credentialed = False  # True if the examples are under a use agreement; the model card then says so
    config.mesh = ConfigDict({"data": 0, "fsdp": 0, "tensor": 0})  # devices along each axis; 0: chosen

    # Examples.
    config.task = "miniature:instruct"  # tasks or files, see above; several by commas, each perhaps NAME=SHARE
    config.data_dir = ""  # folder of the files of the tasks' data sets, or of the data sets of tfds:
    config.cache = ""  # folder for prepared records of the tasks' data sets; "": data_dir/prepared
    # Maps columns of the files of task and validation, such as "prompt={dialogue}; completion={note}; id={note_id}".
    config.fields = ""
    config.shots = 0  # number of examples to choose; 0: all
    config.label = ""  # a column of the files over whose values the chosen examples are balanced; "": not balanced
    config.chat_template = True  # True: prompts and completions become messages of a conversation
    config.answer = "letter"  # target of multiple choice: letter, or text (the letter and the option's text)
    config.length = 512  # the most tokens of a row; 0: the model's context, 4096 at most
    config.too_long = "cut"  # cut (the end of the input, so that the answer fits), or refuse
    # step: the examples of a step share few rows, without attending to one another; none: one row for each example;
    # auto: step, or none if the attention kernel needs it; set: all examples are packed into rows once, and batch_size
    # counts these rows.
    config.packing = "auto"
    config.validation = ""  # held-out examples, given like task, such as mts_dialog@valid; nothing is learned of them
    # Further examples mixed into every step: task and fields as above, and their share of a step. task "": none.
    config.replay = ConfigDict({"task": "", "fields": "", "share": 0.25})

    config.own = own_fields()  # a task of your own; see clinmerge_jax/tasks/own_fields.py

    # Steps and optimizer (AdamW).
    config.epochs = 3.0
    config.steps = 0  # number of steps; 0: as many as the epochs take
    config.batch_size = 16  # examples of a step
    config.micro_batch = 0  # rows computed at a time, to save memory; 0: all of a step, on CPUs about 1,024 tokens
    config.learning_rate = 2e-4  # the highest, after the warm-up
    config.final_share = 0.1  # share of the learning rate that is left at the end
    config.schedule = "cosine"  # decay of the learning rate: cosine, linear or constant
    config.warmup_share = 0.1  # share of the steps in which the learning rate rises
    config.warmup_steps = 0  # number of warm-up steps; 0: by warmup_share
    config.weight_decay = 0.01  # of matrices; norms and biases are not decayed
    config.beta1 = 0.9
    config.beta2 = 0.999
    config.eps = 1e-8
    config.clip_norm = 1.0  # the largest norm of all gradients together; 0: no clipping
    config.first_moment = ""  # dtype of Adam's first moment: float32 or bfloat16; "": float32, as everything else
    config.dtype = "auto"  # of the computation: float32, bfloat16, or auto (bfloat16, on CPUs float32)
    # What the backward pass recomputes of a layer, to save memory: none; dots (all but products with weights); full.
    config.remat = "none"
    config.attention = "auto"  # kernel: reference, splash (TPU), cudnn (GPU; one example in each row), or auto

    # Trained weights. rank 0: all weights, no adapter; targets: names of linear layers, separated by commas.
    config.lora = ConfigDict(
        {"rank": 16, "alpha": 32.0, "dropout": 0.0, "targets": _ALL_LINEAR, "rank_stabilized": False}
    )
    config.merge_adapter = False  # True: the result is the whole model with the adapter merged into it
    config.freeze = ""  # regular expression: tensors whose names match it are not trained; only without an adapter

    # Regularisation against forgetting.
    config.kl = 0.0  # weight of KL(start || model) on the target tokens, added to the loss; 0: off
    config.l2 = 0.0  # weight of half the squared distance to the start, added to the loss; 0: off
    config.wise_ft = 1.0  # the result is start + wise_ft (trained - start); over 0, up to 1

    # Validation, choice of the result, saved steps.
    config.validate_every = 0  # steps between validations; 0: only at the start and the end
    config.patience = 0  # stop after that many validations without a new lowest loss; 0: never
    config.select = "last"  # the step that is the result: last, or best (lowest validation loss)
    config.save_every = 50  # steps between saved states; 0: none but at SIGTERM, at validations and at the end
    config.keep_last = 2  # how many saved states are kept

    if variant in ("full", "pretrain", "runlocal"):
        config.lora.rank = 0
        config.learning_rate = 1e-5
    if variant == "uf_lora":  # what is published of it; steps and warm-up are given in steps, not in epochs
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
        # One run for each combination of these.
        config.grid.seeds = (0, 1, 2)
        config.grid.shots = (16, 64)  # 0: all examples
        config.grid.learning_rates = ()  # (): only config.learning_rate
        config.grid.at_once = 0  # runs trained at the same time, a multiple of the devices; 0: up to eight on each
        for field in (
            "seed",
            "shots",
            "resume",
            "save_every",
            "keep_last",
        ):  # a grid keeps finished runs, but no states on the way
            del config[field]
    return config
