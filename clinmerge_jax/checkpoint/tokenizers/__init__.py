"""Tokenizers and chat templates of a checkpoint, and the embedding rows that belong to them."""
