"""A fine-tuning run from its config: settings, starting checkpoint, training sets and output folder."""
