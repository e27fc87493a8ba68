"""The C library's heap: a long-lived process that gets requests of all sizes must give freed memory back.

glibc gives each thread a heap of its own. Of these, only the first one, the main heap, can be given back to the system
down to what is in use. Each of the others keeps what its largest request needed, and a server has a dozen of them.
"""

import ctypes
import sys

_ARENA_MAX = -8
"""``M_ARENA_MAX`` of ``mallopt(3)``."""


def use_one_heap() -> None:
    """Lets all threads share the main heap. Must be called before other threads start, which keep the heaps they have.

    Sharing costs no time that one can measure: Python threads allocate one at a time, and while torch computes it
    allocates a few blocks per operation.
    """
    _call("mallopt", _ARENA_MAX, 1)


def give_back() -> None:
    """Gives back to the system what the C library keeps for later."""
    _call("malloc_trim", 0)


def _call(name: str, *arguments: int) -> None:
    # Only glibc has these functions.
    function = getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    if function is not None:
        function(*arguments)
