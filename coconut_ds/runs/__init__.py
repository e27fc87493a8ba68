"""Runs on the disk: what a run is (`identity`), its attempts, their manifests and locks."""
