"""Recovers Llama 3.1's RoPE scaling from the factors that llama.cpp stores in its place (rope_freqs.weight).

llama.cpp divides each frequency by a factor: 1 for short wavelengths, `factor` for long ones, and between them
1 / ((1 - s) / factor + s) with s = (original / wavelength - low) / (high - low). So s is linear in 1 / wavelength, and
the fit gives two of the three numbers original, low and high. A common scale of all three cancels, so `low` is set to
1, as in every published config.
"""

import math
from typing import Any

import numpy as np

_TOLERANCE = 1e-5  # relative, of factors stored in float32


def llama3_factors(theta: float, head_dim: int, factor: float, low: float, high: float, original: int) -> np.ndarray:
    """The factors that llama.cpp stores for rope_type "llama3", float64 [head_dim / 2]."""
    turns = original / _wavelengths(theta, head_dim)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return 1 / ((1 - smooth) / factor + smooth)


def llama3_scaling(factors: np.ndarray, theta: float, head_dim: int) -> dict[str, Any] | None:
    """Fits the fields of rope_scaling that reproduce these factors.

    Args:
      factors: [head_dim / 2], as stored.
      theta: base of the frequencies.
      head_dim: the head size of the model.

    Returns:
      Fields of rope_type "llama3"; None if the factors are not of this kind.
    """
    factors = factors.astype(np.float64)
    if factors.shape != (head_dim // 2,) or not np.isfinite(factors).all() or factors.min() < 1 - _TOLERANCE:
        return None
    factor = float(factors.max())
    factor = round(factor) if math.isclose(factor, round(factor), rel_tol=_TOLERANCE) else factor
    between = (factors > 1 + _TOLERANCE) & (factors < factor * (1 - _TOLERANCE))
    if between.sum() < 2:
        return None
    smooth = (1 / factors[between] - 1 / factor) / (1 - 1 / factor)
    slope, offset = np.polyfit(1 / _wavelengths(theta, head_dim)[between], smooth, 1)
    if not (slope > 0 and offset < 0):
        return None
    low, high = 1.0, 1 - 1 / offset
    original = round(slope * (high - low))
    high = float(round(high)) if math.isclose(high, round(high), rel_tol=1e-3) else float(high)
    if not np.allclose(llama3_factors(theta, head_dim, factor, low, high, original), factors, rtol=_TOLERANCE, atol=0):
        return None
    return {
        "rope_type": "llama3",
        "factor": float(factor),
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _wavelengths(theta: float, head_dim: int) -> np.ndarray:
    return 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
