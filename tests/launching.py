"""How tests start processes."""

import os


def environment(**extra: str) -> dict[str, str]:
    """This one's, without what a launcher set, with one thread a process and no compiler."""
    kept = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**kept, "OMP_NUM_THREADS": "1", "CXX": "/nonexistent", "CC": "/nonexistent", **extra}
