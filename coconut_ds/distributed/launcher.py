"""What a launcher's environment variables say about this process, and the command that starts the launcher."""

import os
import socket
import sys
from pathlib import Path


def launched_ranks() -> int:
    """Number of processes that the launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1")) if launched() else 1


def launched_rank() -> int:
    """Rank of this process; 0 without a launcher."""
    return int(os.environ["RANK"]) if launched() else 0


def is_first_on_machine() -> bool:
    """Whether this process has local rank 0, or was started without a launcher."""
    return not launched() or int(os.environ.get("LOCAL_RANK", "0")) == 0


def launched() -> bool:
    """Whether a launcher started this process."""
    # Other variables, such as WORLD_SIZE, may be left over in a shell; without RANK they do not count.
    return "RANK" in os.environ


def deepspeed_launcher() -> int | None:
    """Id of the process of the ``deepspeed`` launcher that started this rank; None if another one or none did."""
    parent = os.getppid()
    return parent if b"deepspeed.launcher.launch" in process_file(parent, "cmdline") else None


def process_file(process: int, name: str) -> bytes:
    """A file of ``/proc/<process>``; empty if the process is gone, or the system has no such folder."""
    try:
        return Path(f"/proc/{process}/{name}").read_bytes()
    except OSError:
        return b""


def launcher(ranks: int) -> list[str]:
    """Command that starts ``ranks`` processes on this machine with DeepSpeed; append a script and its arguments."""
    # The script of the environment that runs this Python. Packages installed with ``pip install --target`` have none.
    script = Path(sys.executable).with_name("deepspeed")
    command = [str(script)] if script.is_file() else [sys.executable, "-m", "deepspeed.launcher.runner"]
    command += ["--num_accelerators", str(ranks), "--master_port", str(free_port()), "--log_level", "error"]
    return command


def starting(start: str, ranks: int) -> list[str]:
    """Command that starts a script on this machine; append the script and its arguments.

    Args:
        start: ``deepspeed``, ``torchrun``, or ``plain`` for Python alone.
        ranks: number of processes; 1 with ``plain``.
    """
    if start == "deepspeed":
        return launcher(ranks)
    if start == "torchrun":
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    assert start == "plain", start
    return [sys.executable]


def free_port() -> int:
    """A TCP port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
