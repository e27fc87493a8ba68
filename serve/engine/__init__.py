"""The thread that owns a model: jobs, whose turn it is, and their events."""
