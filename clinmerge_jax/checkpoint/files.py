"""The files of a checkpoint folder: their names, which are copied with weights, and refusals of other formats."""

import pathlib
import shlex

from clinmerge_jax.errors import BadInput

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
GENERATION_FILE = "generation_config.json"
ORBAX_FOLDER = "params"  # in a folder that configs/convert.py wrote with format=orbax

# Files copied to a derived checkpoint. *.LICENSE* matches the ROLE.LICENSE files of its parents (`copy_licences`).
LICENCE_FILES = ("LICENSE*", "NOTICE*", "USE_POLICY*", "*.LICENSE*", "*.NOTICE*", "*.USE_POLICY*")
CARRIED_FILES = (
    GENERATION_FILE,
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
    *LICENCE_FILES,
)


def licence_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The licence, notice and use-policy files of a folder."""
    return sorted({path for pattern in LICENCE_FILES for path in folder.glob(pattern) if path.is_file()})


def conversion_refusal(what: str, source: pathlib.Path, target: pathlib.Path) -> BadInput:
    """Builds the error for a model in another format, with the command that converts it."""
    fields = " ".join(shlex.quote(f"--config.{key}={place}") for key, place in (("source", source), ("output", target)))
    return BadInput(f"{what}; give {target} after launch/run.sh --config=configs/convert.py {fields}")


def pickle_refusal(
    place: str, pickle: str, source: str, target: str, revision: str | None = None, before: str = ""
) -> BadInput:
    """Builds the error for pickle weights, which can run code, with a command that converts them without running it.

    transformers 5 and later open such files with `torch.load(weights_only=True)`.

    Args:
      place: config field and location, the beginning of the message.
      pickle: the name of one pickle file.
      source: the folder or hub id that transformers reads.
      target: the folder that it writes.
      revision: the revision of the hub id.
      before: Python statements that create `source`, each followed by "; ".

    Returns:
      The BadInput to raise.
    """
    at_revision = f", revision={revision!r}" if revision else ""
    code = (
        f"{before}from transformers import AutoModelForCausalLM as M, AutoTokenizer as T;"
        f" M.from_pretrained({source!r}{at_revision}, dtype='auto').save_pretrained({target!r});"
        f" T.from_pretrained({source!r}{at_revision}).save_pretrained({target!r})"
    )
    argument = shlex.quote(code) if set('"\\$`!') & set(code) else f'"{code}"'
    return BadInput(
        f"{place} holds pickle weights ({pickle}), which can run code when opened; give {target} after converting them"
        f" safely (transformers 5 or later, with torch): python -c {argument}"
    )
