"""Scores and what may be concluded from them."""
