"""Generation: sampling, the engine with its slots, requests."""
