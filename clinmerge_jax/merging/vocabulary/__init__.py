"""Merging models with different tokenizers: alignment of embedding rows, and the tokenizer of the result."""
