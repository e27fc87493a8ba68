"""Train, evaluate and look inside language models that reason in continuous thoughts (Coconut, arXiv 2412.06769)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coconut_ds.generation.answer import Answer
    from coconut_ds.reasoner import Reasoner, load_reasoner

__version__ = "0.1.0"
__all__ = ["Answer", "Reasoner", "__version__", "load_reasoner"]


def __getattr__(name: str) -> Any:
    # Imports torch only when one of these names is used, so that wrong command lines are reported quickly.
    if name == "Answer":
        return import_module("coconut_ds.generation.answer").Answer
    if name in ("Reasoner", "load_reasoner"):
        return getattr(import_module("coconut_ds.reasoner"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
