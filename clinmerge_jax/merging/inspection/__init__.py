"""Comparison of models: distances, angles, signs, lineage, low-rank differences."""
