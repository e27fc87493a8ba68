"""What operators see: the log and metrics."""
