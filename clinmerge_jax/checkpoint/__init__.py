"""Hugging Face folders: reading, checking, converting to Params and back, atomic writing."""
