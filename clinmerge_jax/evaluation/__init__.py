"""Evaluation: held-out loss of merges, and the parts of the evaluate job."""
