"""Computes a model's logits with transformers, with a LoRA adapter on it by PEFT where one is given.

    PEFT_PYTHON third_party/reference/peft_logits.py MODEL 0,3,7 LOGITS.npy [--adapter FOLDER] [--merged FOLDER]

PEFT_PYTHON is the Python of an environment with requirements-peft.txt installed; clinmerge_jax is not
needed there. Everything is computed on the CPU in float32, and every model must be a local folder.
LOGITS.npy gets an array of shape (tokens, vocabulary). --merged writes the model with the adapter added
to its weights, in float32, as a Hugging Face folder.

The last line of standard output is one JSON object:
  warnings        what Python, transformers and PEFT warned of while loading, as a list of lines
  peft, transformers, torch versions
"""

import argparse
import json
import logging
import os
import warnings
from importlib.metadata import version
from pathlib import Path


class Collector(logging.Handler):
    """Keeps the text of every record of the level WARNING or above."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(" ".join(record.getMessage().split()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="Hugging Face folder")
    parser.add_argument("ids", help="token ids, separated by commas")
    parser.add_argument("logits", type=Path, help=".npy file to write")
    parser.add_argument("--adapter", type=Path, help="folder of a LoRA adapter")
    parser.add_argument("--merged", type=Path, help="folder to write the sum of both to")
    args = parser.parse_args()
    if args.merged and not args.adapter:
        parser.error("--merged needs --adapter")
    ids = [int(text) for text in args.ids.split(",")]

    # Set before the imports read it: a mistyped path is an error, never a download.
    os.environ["HF_HUB_OFFLINE"] = "1"
    collector = Collector()
    for name in ("peft", "transformers"):
        logging.getLogger(name).addHandler(collector)

    import numpy as np
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
        if args.adapter:
            model = PeftModel.from_pretrained(model, args.adapter)
        model.eval()
    with torch.no_grad():
        np.save(args.logits, model(torch.tensor([ids])).logits[0].numpy())
    if args.merged:
        model.merge_and_unload().save_pretrained(args.merged)
    told = [f"{item.category.__name__}: {' '.join(str(item.message).split())}" for item in caught]
    versions = {name: version(name) for name in ("peft", "transformers", "torch")}
    print(json.dumps({"warnings": collector.lines + told, **versions}), flush=True)


if __name__ == "__main__":
    main()
