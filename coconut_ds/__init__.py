"""Train, evaluate and look inside language models that reason in continuous thoughts (Coconut, arXiv 2412.06769)."""

__version__ = "0.1.0"
