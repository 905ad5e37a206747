"""Tasks of the miniature's invented world."""
