"""A run's memory, counted before it is run."""
