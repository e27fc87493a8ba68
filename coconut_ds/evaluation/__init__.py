"""What a model makes of problems: predictions, their categories, and what the scores mean."""
