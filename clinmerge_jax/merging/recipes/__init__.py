"""What to merge and how: recipes, coefficients over depth and module, mergekit's recipe files."""
