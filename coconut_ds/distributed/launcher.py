"""What the launcher says about this process, from its environment, and what it needs to start."""

import os
import socket
import sys
from pathlib import Path


def launched_ranks() -> int:
    """Number of processes that the launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1")) if launched() else 1


def launched_rank() -> int:
    """This process's number among them; 0 without a launcher."""
    return int(os.environ["RANK"]) if launched() else 0


def speaks_for_machine() -> bool:
    """Whether this is the first process on its machine."""
    return not launched() or int(os.environ.get("LOCAL_RANK", "0")) == 0


def launched() -> bool:
    """Whether a launcher started this process."""
    # Without RANK other variables are left-overs of a shell.
    return "RANK" in os.environ


def launcher(ranks: int) -> list[str]:
    """The ``deepspeed`` beside this Python, starting ``ranks`` processes here; a script and its arguments follow."""
    command = [str(Path(sys.executable).with_name("deepspeed")), "--num_accelerators", str(ranks)]
    return [*command, "--master_port", str(free_port()), "--log_level", "error"]


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
