"""Results files, and comparisons between systems computed from them."""
