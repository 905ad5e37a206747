"""One file per job; `main` dispatches to `run(config)`."""
