"""Merge models in weight space (arXiv 2604.01538), inspect their differences, or extract a difference as an adapter.

python -m clinmerge_jax.main --config=configs/merge.py[:METHOD|:biomistral|:inspect|:extract_lora] \
    --config.instruct=DIR --config.clinical=DIR [--config.base=DIR] --config.output=DIR
python -m clinmerge_jax.main --config=configs/merge.py --config.recipe=RECIPE.yml --config.output=DIR

By default it merges the two fine-tuned models of the miniature, asks its tasks of all models, and draws how clinical
skill and instruction following change with t.
"""

from ml_collections import ConfigDict

from clinmerge_jax.config_argument import parse

# BioMistral's slerp schedule over depth (Labrak et al. 2024, arXiv 2402.10373); t = 0 is instruct.
BIOMISTRAL = "self_attn=0,0.5,0.3,0.7,1; mlp=1,0.5,0.7,0.3,0; 0.5"


METHODS = (
    "linear", "slerp", "nuslerp", "multislerp", "karcher", "task_arithmetic", "ties", "dare_linear", "dare_ties",
    "della", "della_linear", "breadcrumbs", "breadcrumbs_ties", "sce", "model_stock", "nearswap", "ram",
    "ramplus_tl", "arcee_fusion", "passthrough",
)  # fmt: skip


def get_config(arg: str = "") -> ConfigDict:
    """The config of a merge method ("" is linear), of "biomistral", "inspect" or "extract_lora"; others are refused."""
    variant = parse(arg, ("", *METHODS, "biomistral", "inspect", "extract_lora"))
    if variant == "inspect":
        return _inspect()
    if variant == "extract_lora":
        return _extract_lora()
    config = ConfigDict()
    config.job = "merge"
    # A mergekit recipe file, which then says what is merged: the fields for models, method, t, dtype, tokenizer and
    # chat_template are ignored. Documents of one file may use one another's results. "": merge what the fields say.
    config.recipe = ""
    config.dry_run = False  # True: print the plan, every module with its coefficients, and write nothing
    # The models: a folder, org/name[@revision] on the hub, gs://... or s3://..., or miniature:NAME; MODEL+ADAPTER for
    # a model with a LoRA adapter. Task vector methods take changes from the base; for other methods the base is only
    # measured. base "auto" is the miniature's base for two miniature models and none otherwise; "" is none.
    config.instruct = "miniature:instruct"
    config.clinical = "miniature:clinical"
    config.base = "auto"
    config.method = {"": "linear", "biomistral": "slerp"}.get(variant, variant)
    # The balance: 0 is instruct, 1 is clinical. A number, a list over depth ("0,0.5,1"), or either per module
    # ("self_attn=0,1; mlp=1,0; 0.5": the first filter that is part of the tensor's name wins). Methods with weights
    # use the weights 1 - t and t. nearswap's t is the distance below which it takes clinical's entries.
    config.t = {"biomistral": BIOMISTRAL, "nearswap": "0.0005"}.get(variant, "0.5")
    # Parameters of the methods, in the same three forms; "" is the method's default (mergekit's). A parameter that
    # the method does not have is refused.
    config.weight = ""  # the weight of both models, instead of 1 - t and t
    config.lambda_ = ""  # the factor of the sum of changes
    config.normalize = ""  # true, false: divide by the sum of the weights
    config.density = ""  # the share of entries that is kept: ties, dare_*, della*, breadcrumbs*
    config.rescale = ""  # true, false: scale up what is kept to make up for what was dropped
    config.inverse_density = ""  # true, false: dare_* and della* divide by the density, as their papers do
    config.epsilon = ""  # della*: half the range of densities; ram*: changes up to it count as no change
    config.gamma = ""  # breadcrumbs*: the share of the largest entries that is dropped
    config.int8_mask = ""  # true, false: accepted as mergekit does, without effect on the result
    config.select_topk = ""  # sce: the share of entries, largest variance first, that is kept
    config.filter_wise = ""  # model_stock; true, false: an angle for every row
    config.nuslerp_flatten = ""  # nuslerp; false: treat rows, instead of whole tensors, as vectors
    config.nuslerp_row_wise = ""  # nuslerp; true, with nuslerp_flatten false: treat columns as vectors
    config.normalize_weights = ""  # multislerp; true, false: divide the weights by their sum
    config.eps = ""  # multislerp: added to norms before dividing by them; a mean shorter than it counts as 0
    config.max_iter = ""  # karcher: the most iterations
    config.tol = ""  # karcher: iterations end at a step shorter than this
    config.r = ""  # ramplus_tl: factor of the rescaling of a model's own changes
    config.alpha = ""  # ramplus_tl: upper limit of the ratio of shared to own changes in it
    config.scale = ""  # passthrough: factor of every entry
    config.seed = 0  # of the random masks of dare_* and della*
    config.dtype = ""  # of the result: float32, bfloat16, float16; "": instruct's. Computation is always in float32.
    # The result's tokenizer: "" (the models must agree), "union", "base", or a model or folder with a tokenizer.
    config.tokenizer = ""
    # The embedding row of a token that a model lacks: "owner" (the base's row, else that of the first model that has
    # the token), "mean" (of the models that have it), or "auto" (mergekit's rule).
    config.missing_rows = "auto"
    config.special_rows = True  # take rows of special tokens that one model never trained from the other
    config.cut_to_common = False  # True: cut embeddings of different sizes to the smallest
    config.pad_to_multiple_of = 0  # pad the embedding's rows to a multiple of this; 0: no padding
    config.chat_template = ""  # "": instruct's; "auto", alpaca, chatml, exaone, llama3, mistral, or Jinja text
    # "streaming": piece by piece in bounded memory, on one device. "mesh": models and result in the memory of all
    # devices, of all processes under --distributed. Both give the same bytes.
    config.engine = "streaming"
    # Devices along each axis, for the mesh engine and for the evaluation; 0: chosen.
    config.mesh = ConfigDict({"data": 0, "fsdp": 0, "tensor": 0})
    config.output = f"runs/merge-{variant or 'linear'}"
    config.offline = False  # True: open no connection; if a library tries to, the run ends with an error
    config.overwrite = False  # True: replace what is in the output folder
    config.max_shard_gb = 5.0  # largest size of a weight file, in GB of 1e9 bytes
    # What parents and result are measured on. "auto": for two miniature models the miniature's tasks, with a picture of
    # a sweep over t (with adapters, several processes, or one model as both parents the miniature's held-out text); for
    # others nothing. "": nothing. NAME=FILE.jsonl,...: the loss on held-out text, with a "text" or "messages" field in
    # each line. "miniature": the loss on the miniature's held-out text.
    config.evaluate = "auto"
    config.credentialed = False  # True if a parent saw data under a use agreement; the model card then says so
    return config


def _inspect() -> ConfigDict:
    """Inspection of the differences between the models, for choosing a method."""
    config = ConfigDict()
    config.job = "inspect"
    # Locations of the models, as for a merge; base "auto" is the miniature's base for two miniature models, "" none.
    config.instruct = "miniature:instruct"
    config.clinical = "miniature:clinical"
    config.base = "auto"
    config.top = 1.0  # report the share of the change that this percentage of the entries, the largest, makes up
    config.output = "runs/inspect"
    config.overwrite = False  # True: replace what is in the output folder
    return config


def _extract_lora() -> ConfigDict:
    """Extraction of the difference of two models as a LoRA adapter that PEFT loads."""
    config = ConfigDict()
    config.job = "extract_lora"
    config.model = "miniature:clinical"  # the fine-tuned model
    config.base = "miniature:base"  # the model that it is compared with
    config.rank = 16  # of the adapter; 0: full rank
    config.alpha = 0.0  # 0: equal to the rank, so that the scaling is 1
    config.dtype = ""  # of the factors: float32, bfloat16, float16; "": float32
    # Matrices to extract: parts of their names, separated by commas. embed_tokens and lm_head are saved whole.
    config.modules = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"
    config.output = "runs/extract-lora"
    config.overwrite = False  # True: replace what is in the output folder
    config.credentialed = False  # True if a model saw data under a use agreement; the card then says so
    return config
