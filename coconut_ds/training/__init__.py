"""A run: its experiment, its loop, its engine and its checkpoints."""
