"""Conversion of GGUF, llama2.c, Orbax and Hugging Face models to Hugging Face or Orbax folders."""
