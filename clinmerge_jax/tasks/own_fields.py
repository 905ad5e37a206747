"""The config fields of a user's own task, shared by configs/evaluate.py and configs/sft.py."""

from ml_collections import ConfigDict


def own_fields() -> ConfigDict:
    """The fields that `own.own_task` reads; the task exists once a file is named."""
    return ConfigDict(
        {
            "name": "own",  # sft learns the task if config.task has this name; evaluate asks it whenever test is given
            "test": "",  # a file of rows: JSON lines, a JSON array, CSV, TSV, Parquet
            "train": "",  # likewise, for few-shot examples, trivial baselines and fine-tuning
            "kind": "generation",  # or choice
            "source": "input",  # the field with the input text
            "target": "output",  # the reference answer; of a choice its letter, its place from 0, or its text
            "choices": "choices",  # the options: a list, or a mapping of letters to texts
            "id": "id",  # the field with each item's id; rows without it are numbered
            "cluster": "",  # a field that is equal in items that are not independent
            "label": "",  # a field over which few-shot examples are balanced
            "instruction": "",  # what the model is told to do; precedes the question
            "question": "",  # such as "Text: {input}\nSummary:"; empty: the source (and the options)
            "metrics": "",  # by commas; empty: ROUGE, BLEU, chrF and METEOR for text, accuracy for choices
            "composite": "",  # NAME=metric,metric adds their mean
            "max_new_tokens": 256,  # of an answer
            "floors": True,  # also score trivial baselines, such as copying the input
            "shareable": False,  # True: prompts and answers may be shown to others
        }
    )
