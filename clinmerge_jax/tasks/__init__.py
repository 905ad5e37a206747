"""Evaluation tasks: the data, the prompts and the metrics of each."""
