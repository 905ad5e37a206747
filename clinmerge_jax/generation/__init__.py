"""Generation: sampling, the decode engine and its slots, stopping."""
