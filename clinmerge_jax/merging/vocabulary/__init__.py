"""Models with different tokenizers: whose embedding row goes where, and the tokenizer of the result."""
