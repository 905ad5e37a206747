"""The decode engine as an lm-eval model (Biderman et al. 2024, arXiv 2405.14782), to run any lm-eval task."""
