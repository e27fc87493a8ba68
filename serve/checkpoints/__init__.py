"""Which checkpoints the server offers, and whether they are safe to load."""
