"""BERT and RoBERTa encoders, whose token states BERTScore compares."""

from clinmerge_jax.metrics.encoder.encoder import Encoder, load_encoder

__all__ = ["Encoder", "load_encoder"]
