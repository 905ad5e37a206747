"""Benchmarks: floor, ours and the peer measured in one run; `jobs/benchmark.py` calls them."""
