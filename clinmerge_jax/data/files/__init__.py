"""Files of rows as users have them, and the map from their columns to fields."""
