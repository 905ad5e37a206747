"""Readers of users' files of rows, and the map from their columns to fields."""
