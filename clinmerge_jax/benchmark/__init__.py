"""Measurements against the floor and the peer, in one run; `jobs/benchmark.py` calls them."""
