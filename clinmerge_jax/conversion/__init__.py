"""Models of other formats as Hugging Face folders, and the other way."""
