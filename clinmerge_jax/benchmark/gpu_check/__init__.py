"""Checks and measurements for a few minutes on a borrowed GPU; `launch/gpu_check.sh` runs them."""
