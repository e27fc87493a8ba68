"""How tests start processes."""

import os
import sys

from coconut_ds.distributed.launcher import launcher

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
"""What a launcher sets."""


def starting(ranks: int) -> list[str]:
    """What a script and its arguments follow: plain Python, or the launcher for several ranks."""
    return launcher(ranks) if ranks > 1 else [sys.executable]


def environment(**extra: str) -> dict[str, str]:
    """This one's, without what a launcher set, with one thread a process and no compiler."""
    kept = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    return {**kept, "OMP_NUM_THREADS": "1", "CXX": "/nonexistent", "CC": "/nonexistent", **extra}
