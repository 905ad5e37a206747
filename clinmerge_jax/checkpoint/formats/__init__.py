"""Single-file formats, read by byte ranges: safetensors and GGUF."""
