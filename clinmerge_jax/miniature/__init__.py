"""The miniature: a small invented world, its tokenizer, and three small Llamas trained on it."""
