"""Ask models the questions of tasks, score the answers, and compare.

python -m clinmerge_jax.main --config=configs/evaluate.py \
    --config.model=instruct=DIR,merged=DIR --config.tasks=medical,mts_dialog@test1 --config.data_dir=DIR \
    --config.compare_to=instruct --config.output=DIR

A model is NAME=LOCATION, or NAME@SEED=LOCATION for those that differ by training seed: a folder, a hub id,
MODEL+ADAPTER, or answers:FOLDER, what another program answered (a file TASK@SPLIT.jsonl for each task, with "id" and
"answer"). NAME:chat=LOCATION and NAME:raw=LOCATION ask one model in both ways.

A task of your own, from a file of rows and flags alone:
python -m clinmerge_jax.main --config=configs/evaluate.py --config.tasks= --config.own.name=summaries \
    --config.own.test=test.jsonl --config.own.source=question --config.own.target=summary

Every cell (model, task, way of asking, seed) becomes a line of OUTPUT/results.jsonl when it is done. A rerun, with more
models or tasks or after a kill, makes what is missing.

How well metrics follow what people say of the same outputs (the defaults are the columns of MTS-Dialog's own study):
python -m clinmerge_jax.main --config=configs/evaluate.py:correlate \
    --config.outputs=MTS-Dialog-Automatic-Summaries-ValidationSet.csv \
    --config.ratings=MTS-Dialog-Manual-Scores4CorrelationStudy.csv
"""

from ml_collections import ConfigDict

from clinmerge_jax.config_argument import parse
from clinmerge_jax.tasks.own_fields import own_fields


def get_config(arg: str = "") -> ConfigDict:
    """Strict: one of those above."""
    if parse(arg, ("", "correlate")):
        return _correlate()
    config = ConfigDict()
    config.job = "evaluate"
    config.output = "runs/evaluate"
    config.overwrite = False  # True: the cells of this run are made again
    config.seed = 0  # of the draws and of the human sheet
    config.offline = False  # True: no connection is opened, and one that a library tries ends the run

    # Who is asked, and what.
    config.model = "base=miniature:base,clinical=miniature:clinical,instruct=miniature:instruct"
    config.tasks = "miniature_notes,miniature_chat"  # names, NAME@SPLIT, or groups: clinical, medical
    config.data_dir = ""  # where the files of the data sets lie; those whose licence allows it are fetched into it
    config.cache = ""  # where prepared records go; empty: beside the data
    config.harness_tasks = ""  # of lm-eval: names or YAML files, separated by commas (extra `harness`)
    config.harness_include_path = ""  # a folder of its task YAML files
    config.limit = 0  # only so many items of each task, from the first on; 0 for all

    # How.
    config.chat_template = False  # True puts prompts into the model's chat template
    config.shots = 0  # examples before each question, from the training split alone
    config.seeds = "0"  # of the choice of examples, and of the draws where temperature is over 0
    config.choices = "letters,generated"  # how choices are answered: the likeliest letter, or in words
    config.too_long = "refuse"  # or cut: what is to be read is cut at its end, counted and reported
    config.max_new_tokens = 0  # 0: the task's own
    config.temperature = 0.0  # 0 is greedy
    config.top_k = 0
    config.top_p = 1.0
    config.repetition_penalty = 1.0

    # What is scored and compared.
    config.metrics = ""  # besides the task's own, for tasks that ask for text
    config.composite = ""  # NAME=metric,metric: their mean
    config.encoder = ""  # a BERT or RoBERTa folder: adds BERTScore
    config.encoder_layer = 0  # 0: the layer that is published for it
    config.external = ""  # NAME=command; ...: programs that read and write JSON lines; offline does not bind them
    config.compare_to = ""  # models, by commas: the others' differences from each, what they keep of it, and the tests
    config.margin = 2.0  # points that a model may be worse by and still count as not worse
    config.draws = 0  # of the bootstrap, such as 10000; 0: t-intervals over seeds and clusters

    # What is kept.
    config.save_generations = False  # True: answers, readable by you alone, in a form that answers:FOLDER takes
    config.human_sheet = 0  # so many items of each task, for people who rate blindly

    # A task of your own.
    config.own = own_fields()

    # On which machine.
    config.dtype = ""  # of the computation: float32, bfloat16; "" is the checkpoint's
    config.int8_weights = False
    config.int8_cache = False
    config.attention = "auto"
    config.slots = 16  # answers that are generated at once
    config.length = 0  # the most tokens of a prompt and its answer; 0: the model's context
    config.mesh = ConfigDict({"data": 0, "fsdp": 0, "tensor": 0})
    return config


def _correlate() -> ConfigDict:
    config = ConfigDict()
    config.job = "correlate"
    config.output = "runs/correlate"
    config.outputs = ""  # CSV, TSV, JSON lines, a JSON array or Parquet
    config.ratings = ""  # likewise, a row for each output in the same order; empty: they stand beside the outputs
    config.output_column = "Automatic Summary"
    config.reference_column = "Reference Summary"
    config.columns = "FactualF1,HallucinationRate"  # of the ratings
    config.metrics = (
        "meteor_exact_stem,chrf_sentence,rougeL_stemmed,rouge1_stemmed,bleu,rouge2_stemmed,composite_rouge_bleu_meteor"
    )
    return config
