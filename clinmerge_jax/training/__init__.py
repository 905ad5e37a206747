"""Training: a plain Optax loop."""
