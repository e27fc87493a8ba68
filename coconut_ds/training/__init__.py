"""Training: the parts of an experiment, the training loop, the DeepSpeed engine, metrics and checkpoints."""
