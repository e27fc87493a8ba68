"""Requests to stop a run: signals, or the end of the launcher. Ranks then finish the current update, save and exit."""

import os
import signal
import threading
import time
from types import FrameType
from typing import Self

from coconut_ds.distributed.launcher import deepspeed_launcher, process_file
from coconut_ds.errors import CoconutError

EXIT_CODE = 75
"""Exit code of every rank after an interrupted run was saved (EX_TEMPFAIL: run the same command again)."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""Signals that always ask a run to stop."""
CLUSTER_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU") if hasattr(signal, name)
)
"""Signals that ask a run to stop unless somebody has decided otherwise: SIGHUP comes from a terminal that is closed
(``nohup`` ignores it), the others from schedulers before a time limit."""
POLL_S = 1.0
"""Seconds between two checks that the launcher is alive."""
FORCE_QUIT_S = 1.0
"""A second SIGINT stops the process at once if it comes more than this many seconds after the first."""


class Interrupted(CoconutError):
    """The run was interrupted by a signal or by the end of its launcher."""

    speaker = 0
    """The rank that tells the user."""


class Interrupts:
    """Within ``with Interrupts(…) as interrupts``, signals that ask to stop only set ``interrupts.requested``.

    These are ``STOP_SIGNALS``, and those of ``CLUSTER_SIGNALS`` that would end the process otherwise: one that is
    ignored or has a handler keeps it.

    Args:
        launched: whether a launcher started this process; its end is then a request to stop as well. Without a
            launcher the parent process is a shell, which a run in the background outlives.
    """

    def __init__(self, launched: bool) -> None:
        self._launched = launched
        self._reason: str | None = None
        self._first_sigint: float | None = None
        self._handled = False
        self._old: dict[signal.Signals, signal._HANDLER] = {}
        self._closed = threading.Event()

    @property
    def requested(self) -> bool:
        """Whether this process has been asked to stop."""
        return self._reason is not None

    @property
    def reason(self) -> str:
        """Why the run stops: the name of the signal, or a description."""
        return self._reason or "another rank was interrupted"

    def handled(self) -> None:
        """Notes that the run is saved and ends: signals that come from now on change nothing."""
        self._handled = True

    def __enter__(self) -> Self:
        # Only the main thread may install signal handlers; a run in another thread ends with the process.
        if threading.current_thread() is threading.main_thread():
            ends = [number for number in CLUSTER_SIGNALS if signal.getsignal(number) == signal.SIG_DFL]
            for number in (*STOP_SIGNALS, *ends):
                self._old[number] = signal.signal(number, self._note)
        if self._launched:
            threading.Thread(target=self._watch, args=(launcher_processes(),), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._handled:
            return
        now = time.monotonic()
        if number == signal.SIGINT:
            # One Ctrl-C may reach a process twice: from the terminal and through its launcher.
            if self._first_sigint is not None and now - self._first_sigint > FORCE_QUIT_S:
                raise KeyboardInterrupt
            self._first_sigint = self._first_sigint or now
        self._reason = self._reason or signal.Signals(number).name

    def _watch(self, ancestors: list[int]) -> None:
        while not self._closed.wait(POLL_S):
            if launcher_processes() != ancestors:
                self._reason = self._reason or "the launcher is gone"
                return


def ignore_signals() -> None:
    """Ignores all signals that ask to stop until this process ends, so that they cannot change its exit code."""
    for number in (*STOP_SIGNALS, *CLUSTER_SIGNALS):
        signal.signal(number, signal.SIG_IGN)


def launcher_processes() -> list[int]:
    """Process ids of the launcher that started this process.

    The ``deepspeed`` launcher has two processes above a rank: one that starts the ranks of this machine, and its
    parent, the command that the user typed (or its remote shell). Killing only the parent leaves the ranks running, so
    both are watched.
    """
    parent = os.getppid()
    if deepspeed_launcher() is None:
        return [parent]
    # The parent's id is field 4 of the line. Field 2, the name in parentheses, may contain spaces and parentheses.
    fields = process_file(parent, "stat").rpartition(b")")[2].split()
    return [parent, int(fields[1])] if len(fields) > 1 else [parent]
