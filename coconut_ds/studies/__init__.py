"""Trainings that belong together, and what they show: the demo, methods, thoughts."""
