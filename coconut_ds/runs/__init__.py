"""Runs on the disk: what identifies a run, its attempts, their manifests and locks, and `coconut-runs`."""
