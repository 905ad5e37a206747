"""Training with Optax: loss, step, loop, checkpoints, and grids of runs."""
