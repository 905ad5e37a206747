"""Llama in Flax: configuration, the parameter table, the forward pass."""
