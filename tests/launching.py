"""How tests start processes: really, or forked from a process that has imported everything.

``run`` and ``start`` fork (see ``zygote.py``). Set the environment variable ``REAL_PROCESSES=1`` and they start real
processes, under the real launcher for several ranks. Tests about launchers and fresh processes always start real ones.
"""

import atexit
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import forked

from coconut_ds.distributed.launcher import launcher

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TRAIN, EVALUATE = (ROOT / "coconut_ds" / f"{name}.py" for name in ("train", "evaluate"))
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
"""Environment variables that a launcher sets."""
ZYGOTE = "COCONUT_TESTS_ZYGOTE"
"""Environment variable with the address of the zygote that this process and those it starts share."""
_starting = threading.Lock()
Process = subprocess.Popen[str] | forked.ForkedProcess


def starting(ranks: int) -> list[str]:
    """What starts a script in real processes: plain Python, or the launcher for several ranks."""
    return launcher(ranks) if ranks > 1 else [sys.executable]


def forking(command: Sequence[str | Path]) -> list[str | Path]:
    """A command for ``run`` and ``start`` that forks the processes of a script such as ``deepspeed`` too."""
    return [*([HERE / "forking_launcher.py"] if can_fork() else ()), *command]


def environment(**extra: str) -> dict[str, str]:
    """This process's environment, without a launcher's variables, with one thread per process and no compiler."""
    kept = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    return {**kept, "OMP_NUM_THREADS": "1", "CXX": "/nonexistent", "CC": "/nonexistent", **extra}


def start(
    command: Sequence[str | Path], env: Mapping[str, str], ranks: int = 1, cwd: Path | str | None = None, **streams: Any
) -> Process:
    """Starts a script, with its arguments, in a session of its own; ``streams`` are those of ``subprocess.Popen``."""
    words = [str(word) for word in command]
    if can_fork():
        env = {**env, ZYGOTE: zygote()}
        return forked.ForkedProcess(zygote(), words, env, ranks, cwd, **streams)
    return subprocess.Popen([*starting(ranks), *words], env=env, cwd=cwd, text=True, start_new_session=True, **streams)


def run(
    command: Sequence[str | Path],
    env: Mapping[str, str],
    ranks: int = 1,
    cwd: Path | str | None = None,
    timeout: float = 900,
) -> subprocess.CompletedProcess[str]:
    """Runs a script, with its arguments, to its end; returns its exit code and what it wrote."""
    words = [str(word) for word in command]
    if can_fork():
        return forked.run(zygote(), words, timeout, env={**env, ZYGOTE: zygote()}, ranks=ranks, cwd=cwd)
    words = [*starting(ranks), *words]
    return subprocess.run(words, env=env, cwd=cwd, timeout=timeout, capture_output=True, text=True, check=False)


def can_fork() -> bool:
    """Not where an accelerator is: its library does not work in a forked process."""
    if not may_fork():
        return False
    import torch

    return not torch.accelerator.is_available()


def may_fork() -> bool:
    """Whether processes are forked unless torch finds an accelerator, which this does not look for."""
    return os.environ.get("REAL_PROCESSES", "0") == "0" and sys.platform == "linux"


def zygote(many: bool = False) -> str:
    """The address of the zygote, which is started on first use; ``many``: several test processes will share it."""
    with _starting:
        if ZYGOTE not in os.environ:
            server = forked.Zygote(many)
            atexit.register(server.close)
            os.environ[ZYGOTE] = server.address
    return os.environ[ZYGOTE]
