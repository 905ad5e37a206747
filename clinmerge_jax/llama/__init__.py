"""Llama in Flax: configuration, the parameter table, the forward pass, the key-value cache, attention backends."""
