"""Merging clinical and instruct Llamas in weight space, in JAX."""
