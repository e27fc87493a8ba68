"""Looking inside: thoughts decoded, probed and changed, with controls. No user interface; results are plain values."""
