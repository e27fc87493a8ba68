"""What the launcher says about this process, from its environment."""

import os


def launched_ranks() -> int:
    """Number of processes that the launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched_rank() -> int:
    """This process's number among them; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))
