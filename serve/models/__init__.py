"""Loaded models: loading, unloading and the memory budget."""
