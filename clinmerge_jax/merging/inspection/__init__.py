"""What models have in common: distances, angles, signs, lineage, low-rank differences."""
