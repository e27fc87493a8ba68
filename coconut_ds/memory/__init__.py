"""Estimates the GPU memory of a training run before it is started."""
