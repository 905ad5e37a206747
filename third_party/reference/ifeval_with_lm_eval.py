"""IFEval's verdicts by lm-eval's checkers, on prompts and responses as lists.

    PYTHON third_party/reference/ifeval_with_lm_eval.py PROMPTS RESPONSES VERDICTS [--nltk_data FOLDER]

PYTHON is one with the extra `harness` installed; all three are JSON lines. PROMPTS has IFEval's format. A line of
RESPONSES is {"key", "response"}, where the key is that of a prompt; a line of VERDICTS is {"key", "strict", "loose"}
with a list of booleans each, or {"key", "error"} where the checkers end in an exception.

lm-eval is called as a library, as it is, but for two things that would make its verdicts depend on more than the text:
the random numbers of langdetect are seeded (DetectorFactory.seed = 0), and NLTK's sentence tokenizer is the trained
English one of FOLDER (with tokenizers/punkt_tab in it) or, without a folder, an untrained Punkt, as nothing is
downloaded.
"""

import argparse
import json
import pathlib
import re
import types
import unittest.mock
from collections.abc import Callable
from typing import Any

import langdetect
import nltk
from nltk.tokenize.punkt import PunktSentenceTokenizer, PunktTokenizer

ERRORS = (
    re.error,
    RecursionError,
    TypeError,
)  # in which checkers end: keywords are patterns to them, a letter one character


def splitter(nltk_data: str | None) -> PunktSentenceTokenizer:
    """The trained English Punkt of a folder, or one without training."""
    if nltk_data is None:
        return PunktSentenceTokenizer()
    nltk.data.path.insert(0, nltk_data)
    return PunktTokenizer("english")


def verdicts(sentences: Any) -> Callable[[dict[str, Any], str], dict[str, list[bool]]]:
    """A function of a row of IFEval's data and a response to lm-eval's verdicts on each instruction.

    It raises what lm-eval's checkers raise.

    Args:
      sentences: what splits text, with the method `tokenize`.
    """
    # On import lm-eval looks for the data of NLTK and would download them.
    with unittest.mock.patch("nltk.data.find"):
        from lm_eval.tasks.ifeval import instructions_util, utils

    langdetect.DetectorFactory.seed = 0
    words = nltk.NLTKWordTokenizer()

    def word_tokenize(text: str) -> list[str]:
        """NLTK's function of this name, with the splitter at hand."""
        return [word for one in sentences.tokenize(text) for word in words.tokenize(one)]

    instructions_util.nltk = types.SimpleNamespace(tokenize=nltk.tokenize, word_tokenize=word_tokenize)
    instructions_util._get_sentence_tokenizer = lambda: sentences

    def judge(row: dict[str, Any], response: str) -> dict[str, list[bool]]:
        example = utils.InputExample(row["key"], row["instruction_id_list"], row["prompt"], row["kwargs"])
        return {
            "strict": utils.test_instruction_following_strict(example, response).follow_instruction_list,
            "loose": utils.test_instruction_following_loose(example, response).follow_instruction_list,
        }

    return judge


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompts", type=pathlib.Path)
    parser.add_argument("responses", type=pathlib.Path)
    parser.add_argument("verdicts", type=pathlib.Path, help="file to write")
    parser.add_argument("--nltk_data", help="folder with tokenizers/punkt_tab")
    args = parser.parse_args()
    rows = {str(row["key"]): row for row in _read(args.prompts)}
    judge = verdicts(splitter(args.nltk_data))
    with open(args.verdicts, "w", encoding="utf-8") as file:
        for answer in _read(args.responses):
            try:
                found = judge(rows[str(answer["key"])], answer["response"])
            except ERRORS as error:
                found = {"error": f"{type(error).__name__}: {error}"}
            file.write(json.dumps({"key": answer["key"], **found}) + "\n")


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


if __name__ == "__main__":
    main()
