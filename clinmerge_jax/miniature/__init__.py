"""The miniature: text about a small invented world, its tokenizer, and three small Llama models trained on it."""
