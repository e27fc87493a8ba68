"""Evaluation: a model's predictions for a set of problems, their scores, and comparisons of two evaluations."""
