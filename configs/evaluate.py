"""Evaluate models on tasks: collect their answers, score them, and compare the models.

python -m clinmerge_jax.main --config=configs/evaluate.py \
    --config.model=instruct=DIR,merged=DIR --config.tasks=medical,mts_dialog@test1 --config.data_dir=DIR \
    --config.compare_to=instruct --config.output=DIR

A model is NAME=LOCATION, or NAME@SEED=LOCATION for models that differ by training seed. A location is a folder, a hub
id, MODEL+ADAPTER, or answers:FOLDER for answers that another program wrote (a file TASK@SPLIT.jsonl for each task, with
"id" and "answer"). A location can also be composed in memory: a merge that no folder holds, such as
linear(INSTRUCT,CLINICAL,t=0.3), or a control: random_delta(INSTRUCT,CLINICAL,BASE,t=0.5,seed=0),
either(INSTRUCT,CLINICAL) (the parents' mean) and ensemble(INSTRUCT,CLINICAL) (mixed logits); see
clinmerge_jax/evaluation/composed.py. NAME:chat=LOCATION and NAME:raw=LOCATION evaluate one model with and without its
chat template.

A task of your own, from files of rows and flags alone (sft takes the same --config.own flags and learns it with
--config.task=summaries):
python -m clinmerge_jax.main --config=configs/evaluate.py --config.tasks=summaries --config.own.name=summaries \
    --config.own.test=test.csv --config.own.train=train.csv --config.own.id=note_id --config.own.source=note \
    --config.own.target=summary --config.own.instruction="Summarise the clinical note."

Every cell (model, task, way of answering, seed) becomes a line of OUTPUT/results.jsonl when it is done. A rerun, with
more models or tasks or after a kill, computes what is missing.

Correlation of metrics with human ratings of the same outputs (the defaults are the columns of MTS-Dialog's own study):
python -m clinmerge_jax.main --config=configs/evaluate.py:correlate \
    --config.outputs=MTS-Dialog-Automatic-Summaries-ValidationSet.csv \
    --config.ratings=MTS-Dialog-Manual-Scores4CorrelationStudy.csv
"""

from ml_collections import ConfigDict

from clinmerge_jax.config_argument import parse
from clinmerge_jax.tasks.own_fields import own_fields


def get_config(arg: str = "") -> ConfigDict:
    """The config of the evaluation, or of the variant "correlate"; any other argument is refused."""
    if parse(arg, ("", "correlate")):
        return _correlate()
    config = ConfigDict()
    config.job = "evaluate"
    config.output = "runs/evaluate"
    config.overwrite = False  # True: compute the cells of this run again
    config.seed = 0  # of sampling and of the human sheet
    config.offline = False  # True: open no connection; if a library tries to, the run ends with an error

    # Models and tasks.
    # NAME=LOCATION entries, separated by commas; see above.
    config.model = "base=miniature:base,clinical=miniature:clinical,instruct=miniature:instruct"
    config.tasks = "miniature"  # NAME, NAME@SPLIT, or a group: clinical, medical, following
    config.data_dir = ""  # folder of the data sets' files; sets whose licence allows it are downloaded into it
    config.cache = ""  # folder for prepared records; "": data_dir/prepared
    config.harness_tasks = ""  # lm-eval tasks: names or YAML files, separated by commas (needs the extra `harness`)
    config.harness_include_path = ""  # a folder with further task YAML files for lm-eval
    config.limit = 0  # how many items of each task, from the first on; 0: all

    # Prompts and sampling.
    config.chat_template = False  # True: put prompts into the model's chat template, as sft does by default
    config.shots = 0  # examples in each prompt, from the training split only (in sft.py: examples to learn from)
    config.seeds = "0"  # seeds, by commas: of the choice of examples, and of sampling if temperature is over 0
    config.choices = "letters,generated"  # for multiple choice: the likeliest letter, generated text, or both
    config.too_long = "refuse"  # refuse, or cut: the end of the input is cut, counted and reported
    config.max_new_tokens = 0  # the most tokens of an answer; 0: the task's own limit
    config.temperature = 0.0  # 0: greedy
    config.top_k = 0  # sample from the k likeliest tokens; 0: from all
    config.top_p = 1.0  # sample from the likeliest tokens whose probabilities add up to this; 1: from all
    config.repetition_penalty = 1.0  # over 1 makes tokens that have occurred less likely; 1: off

    # Scores and comparisons.
    config.metrics = ""  # metrics, by commas, in addition to the task's own; for tasks that ask for text
    config.composite = ""  # NAME=metric,metric adds the mean of these metrics
    config.encoder = ""  # folder of a BERT or RoBERTa: adds BERTScore
    config.encoder_layer = 0  # layer of the encoder; 0: the layer published for it
    config.external = ""  # NAME=command; ... adds programs that read and write JSON lines; offline does not bind them
    config.compare_to = ""  # models, by commas: test the others' differences from each, and what they keep of it
    config.margin = 2.0  # non-inferiority margin, in points
    config.draws = 0  # bootstrap draws, 1000 or more; 0: t-intervals over seeds and clusters

    # Kept answers.
    config.save_generations = False  # True: keep answers, readable by their owner only, for answers:FOLDER
    config.human_sheet = 0  # items of each task in a sheet for blind raters; needs save_generations; 0: no sheet

    # A task of your own; its fields are described in clinmerge_jax/tasks/own_fields.py.
    config.own = own_fields()

    # Computation.
    config.dtype = ""  # float32 or bfloat16; "": the checkpoint's
    config.int8_weights = False  # True: the layers' matrices in int8, as in configs/generate.py
    config.int8_cache = False  # True: keys and values in int8, as in configs/generate.py
    config.attention = "auto"  # kernel of the decode steps: reference, ragged (TPU), or auto
    config.slots = 16  # answers that are generated at the same time
    config.length = 0  # the most tokens of a prompt with its answer; 0: the model's context
    config.mesh = ConfigDict({"data": 0, "fsdp": 0, "tensor": 0})  # devices along each axis; 0: chosen
    return config


def _correlate() -> ConfigDict:
    config = ConfigDict()
    config.job = "correlate"
    config.output = "runs/correlate"
    config.outputs = ""  # file of outputs and references: CSV, TSV, JSON lines, a JSON array or Parquet
    config.ratings = ""  # such a file with a row of ratings for each output, in the same order; "": same file
    config.output_column = "Automatic Summary"  # column of the outputs
    config.reference_column = "Reference Summary"  # column of the references
    config.columns = "FactualF1,HallucinationRate"  # columns of the ratings, separated by commas
    # Metrics that score the outputs, separated by commas.
    config.metrics = (
        "meteor_exact_stem,chrf_sentence,rougeL_stemmed,rouge1_stemmed,bleu,rouge2_stemmed,composite_rouge_bleu_meteor"
    )
    return config
