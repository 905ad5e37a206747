"""One run of fine-tuning as a config describes it: its settings, what it starts and learns from, its folder."""
