"""Scores pairs of texts with bert-score, as it does by default, on the CPU.

    BERT_SCORE_PYTHON third_party/reference/bert_scores.py MODEL LAYER PAIRS.json

BERT_SCORE_PYTHON is the Python of an environment with requirements-bert-score.txt installed; clinmerge_jax is not
needed there. MODEL is a local folder with weights, vocabulary files and their settings. PAIRS.json holds a list of
[answer, reference].

The last line of standard output is one JSON object:
  scores          precision, recall and F1 of each pair, from 0 to 1
  hash            what bert-score says of its settings and versions
"""

import argparse
import json
import os
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="Hugging Face folder")
    parser.add_argument("layer", type=int, help="whose states are compared")
    parser.add_argument("pairs", type=Path, help="JSON file")
    args = parser.parse_args()
    answers, references = zip(*json.loads(args.pairs.read_text()))

    # Set before the imports read it: a mistyped path is an error, never a download.
    os.environ["HF_HUB_OFFLINE"] = "1"
    import bert_score

    scores, told = bert_score.score(
        list(answers),
        list(references),
        model_type=str(args.model),
        num_layers=args.layer,
        device="cpu",
        batch_size=4,
        return_hash=True,
    )
    rows = [[float(value) for value in row] for row in zip(*scores)]
    print(json.dumps({"scores": rows, "hash": told}), flush=True)


if __name__ == "__main__":
    main()
