"""Runs a script in a network namespace: ``python tests/in_namespace.py NAME SCRIPT ARGUMENTS``. Needs root.

Unlike ``ip netns exec`` it starts no program, so the process can be forked from the zygote.
"""

import ctypes
import os
import runpy
import sys

CLONE_NEWNET = 0x40000000


def enter(name: str) -> None:
    """Moves this process, which must have no other threads, to the namespace.

    Raises:
        OSError: there is none of this name, or the user may not enter it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{name}") as file:
        if libc.setns(file.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), name)


if __name__ == "__main__":
    enter(sys.argv[1])
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
