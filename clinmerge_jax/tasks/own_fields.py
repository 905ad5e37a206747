"""The config of a user's own task; configs/evaluate.py and configs/sft.py share it."""

from ml_collections import ConfigDict


def own_fields() -> ConfigDict:
    """Its fields, as `own.own_task` reads them; there is such a task once a file is named."""
    return ConfigDict(
        {
            "name": "own",
            "test": "",  # a file of rows: JSON lines, a JSON array, CSV, TSV, Parquet
            "train": "",  # likewise, for examples and floors
            "kind": "generation",  # or choice
            "source": "input",  # the field that is to be read
            "target": "output",  # the reference; of a choice its letter, its number from 0, or its text
            "choices": "choices",  # the options: a list, or letters to texts
            "id": "id",
            "cluster": "",  # a field that items share which are no independent evidence
            "label": "",  # a field that examples are balanced over
            "instruction": "",
            "question": "",  # such as "Text: {input}\nSummary:"; empty: the source alone
            "metrics": "",
            "composite": "",
            "max_new_tokens": 256,
            "floors": True,
            "shareable": False,
        }
    )
