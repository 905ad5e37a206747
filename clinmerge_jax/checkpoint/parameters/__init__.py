"""Checkpoints to Params and back: weight files, sharded loading, Orbax."""
