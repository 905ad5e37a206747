"""The kinds of instructions of IFBench (arXiv 2507.02833)."""
