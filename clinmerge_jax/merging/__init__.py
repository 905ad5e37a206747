"""Merging in weight space: methods, recipes, engines, and what differs between the parents."""
