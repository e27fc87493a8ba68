"""Imports of torch and other large libraries, which wait until the command line has been checked."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def late_imports() -> Iterator[None]:
    """Makes the imports within this context faster: meanwhile, Python does not look for garbage.

    These libraries create about a million objects that live as long as the process. After this context, the garbage
    collector ignores all objects that exist by then. If torch has been imported before, the context does nothing.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
