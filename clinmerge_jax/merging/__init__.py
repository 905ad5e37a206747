"""Merging in weight space: methods, recipes, engines, and how the parents differ."""
