"""The adapter for lm-evaluation-harness: its model ``coconut``, and the arguments that the harness passes."""
