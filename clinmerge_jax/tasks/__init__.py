"""Tasks: what is asked of a model, from which data, in which words, and how an answer is scored."""
