"""The decode engine as a model of lm-eval (Biderman et al. 2024, arXiv 2405.14782), so that any of its tasks runs."""
