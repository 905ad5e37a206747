"""Merge models in weight space (arXiv 2604.01538), look at what they differ by, or take a difference as an adapter.

python -m clinmerge_jax.main --config=configs/merge.py[:METHOD|:biomistral|:inspect|:extract_lora] \
    --config.instruct=DIR --config.clinical=DIR [--config.base=DIR] --config.output=DIR
python -m clinmerge_jax.main --config=configs/merge.py --config.recipe=RECIPE.yml --config.output=DIR

As it stands it merges the miniature's two fine-tuned models and measures them against its base.
"""

from ml_collections import ConfigDict

from clinmerge_jax.config_argument import parse

# BioMistral's slerp schedule over depth (Labrak et al. 2024, arXiv 2402.10373), instruct as base.
BIOMISTRAL = "self_attn=0,0.5,0.3,0.7,1; mlp=1,0.5,0.7,0.3,0; 0.5"


METHODS = (
    "linear", "slerp", "nuslerp", "multislerp", "karcher", "task_arithmetic", "ties", "dare_linear", "dare_ties",
    "della", "della_linear", "breadcrumbs", "breadcrumbs_ties", "sce", "model_stock", "nearswap", "ram",
    "ramplus_tl", "arcee_fusion", "passthrough",
)  # fmt: skip


def get_config(arg: str = "") -> ConfigDict:
    """Strict: a merge method ("linear" is the default), "biomistral", "inspect" or "extract_lora"."""
    variant = parse(arg, ("", *METHODS, "biomistral", "inspect", "extract_lora"))
    if variant == "inspect":
        return _inspect()
    if variant == "extract_lora":
        return _extract_lora()
    config = ConfigDict()
    config.job = "merge"
    # A mergekit recipe file: it then says what is merged, and of this config only output, engine, seed and the like
    # hold. Several documents may use one another's results.
    config.recipe = ""
    config.dry_run = False  # print the plan, every module with its coefficients, and write nothing
    # A folder, org/name[@revision] on the hub, gs://... or s3://..., miniature:NAME; with +ADAPTER for a LoRA adapter
    # on it. Methods that count changes from a base take them from this one, for others it is only measured: "auto" is
    # the miniature's for two miniatures and none otherwise, "" none.
    config.instruct = "miniature:instruct"
    config.clinical = "miniature:clinical"
    config.base = "auto"
    config.method = {"": "linear", "biomistral": "slerp"}.get(variant, variant)
    # 0 is instruct, 1 is clinical: a number, a list over depth ("0,0.5,1"), or such per module
    # ("self_attn=0,1; mlp=1,0; 0.5": the first filter that is part of the tensor's name wins). Methods with weights
    # take 1 - t and t; nearswap's t is the distance below which it takes clinical's entries.
    config.t = {"biomistral": BIOMISTRAL, "nearswap": "0.0005"}.get(variant, "0.5")
    # Parameters of the methods, in the same three forms; "" is the method's default (mergekit's), and one that the
    # method does not have is refused.
    config.weight = ""  # of both models, in place of 1 - t and t
    config.lambda_ = ""  # the factor of the sum of changes
    config.normalize = ""  # true, false: divide by the sum of the weights
    config.density = ""  # share of entries that are kept: ties, dare_*, della*, breadcrumbs*
    config.rescale = ""  # true, false: make up for what was dropped
    config.inverse_density = ""  # true, false: dare_* and della* divide by the density, as their papers do
    config.epsilon = ""  # della*: half the range of densities; ram*: below it a change counts as none
    config.gamma = ""  # breadcrumbs*: share of the largest entries that are dropped
    config.int8_mask = ""  # accepted for mergekit's sake: results are the same
    config.select_topk = ""  # sce
    config.filter_wise = ""  # model_stock
    config.nuslerp_flatten = ""
    config.nuslerp_row_wise = ""
    config.normalize_weights = ""  # multislerp
    config.eps = ""  # multislerp
    config.max_iter = ""  # karcher
    config.tol = ""  # karcher
    config.r = ""  # ramplus_tl
    config.alpha = ""  # ramplus_tl
    config.scale = ""  # passthrough
    config.seed = 0  # of random masks: dare_*, della*
    config.dtype = ""  # float32, bfloat16, float16; "" keeps instruct's. The maths runs in float32 always.
    # The result's tokens: "" (the models must agree), "union", "base", or a model whose tokenizer it gets. A row that
    # a model lacks is, by missing_rows, the "owner"'s (base first), the "mean" of the others', or "auto": mergekit's
    # rule.
    config.tokenizer = ""
    config.missing_rows = "auto"
    config.special_rows = True  # rows of special tokens that one model never trained are taken from the other
    config.cut_to_common = False  # cut embeddings of different sizes to the smallest
    config.pad_to_multiple_of = 0
    config.chat_template = ""  # "" is instruct's; "auto", alpaca, chatml, exaone, llama3, mistral, or Jinja text
    # "streaming": piece by piece in bounded memory, on one device. "mesh": the models and the result in the memory
    # of all devices, of all processes under --distributed; the same bytes.
    config.engine = "streaming"
    # Devices along each axis, for the mesh engine and for the evaluation; 0 leaves an axis to be picked.
    config.mesh = ConfigDict({"data": 0, "fsdp": 0, "tensor": 0})
    config.output = f"runs/merge-{variant or 'linear'}"
    config.offline = False  # True: no connection is opened, and one that a library tries ends the run
    config.overwrite = False
    config.max_shard_gb = 5.0
    # Held-out text: "auto" (the miniature's own for miniature models, else none), "" for none, or
    # NAME=FILE.jsonl,... with a "text" or "messages" field per line.
    config.evaluate = "auto"
    config.credentialed = False  # True where a parent saw data under a use agreement: the card says so
    return config


def _inspect() -> ConfigDict:
    """What the models differ by, so that a method can be chosen by looking."""
    config = ConfigDict()
    config.job = "inspect"
    config.instruct = "miniature:instruct"
    config.clinical = "miniature:clinical"
    config.base = "auto"
    config.top = 1.0  # per cent of the entries, whose share of the change is told
    config.output = "runs/inspect"
    config.overwrite = False
    return config


def _extract_lora() -> ConfigDict:
    """The difference of two models as a LoRA adapter that PEFT loads."""
    config = ConfigDict()
    config.job = "extract_lora"
    config.model = "miniature:clinical"
    config.base = "miniature:base"
    config.rank = 16  # 0 for the full rank
    config.alpha = 0.0  # 0 is the rank, so that the scaling is 1
    config.dtype = ""  # of the factors; "" is float32
    # Parts of module names; embed_tokens and lm_head are saved whole.
    config.modules = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"
    config.output = "runs/extract-lora"
    config.overwrite = False
    config.credentialed = False  # True where a model saw data under a use agreement: the card says so
    return config
