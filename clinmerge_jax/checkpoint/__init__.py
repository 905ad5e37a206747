"""Model folders: fetching, opening and checking them, loading Params and saving them, atomic output."""
