"""Being asked to stop: signals, and launchers that are gone. Ranks then end the current update, save and leave."""

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Self

from coconut_ds.errors import CoconutError

EXIT_CODE = 75
"""Of every rank that was interrupted and has saved (EX_TEMPFAIL: start the same command again)."""
POLL_S = 1.0
"""Seconds between two looks at the launcher."""
IMPATIENCE_S = 1.0
"""A second SIGINT so much later means: at once."""


class Interrupted(CoconutError):
    """The run was asked to stop."""


class Interrupts:
    """From ``with Interrupts(…) as interrupts`` on, SIGTERM and SIGINT only set ``requested``.

    Args:
        launched: whether a launcher's end asks to stop too. Without a launcher the parent is a shell, and a run in the
            background outlives that.
    """

    def __init__(self, launched: bool) -> None:
        self._launched = launched
        self._reason: str | None = None
        self._pressed: float | None = None
        self._old: dict[signal.Signals, signal._HANDLER] = {}
        self._over = threading.Event()

    @property
    def requested(self) -> bool:
        """Whether this process should stop soon."""
        return self._reason is not None

    @property
    def reason(self) -> str:
        """What asked for it."""
        return self._reason or "another rank was interrupted"

    def __enter__(self) -> Self:
        # Signals are the main thread's; what runs in another ends with the process.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._note)
        if self._launched:
            threading.Thread(target=self._watch, args=(launcher_processes(),), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT:
            # One press of the keys may reach a process twice, through its launcher.
            if self._pressed is not None and now - self._pressed > IMPATIENCE_S:
                raise KeyboardInterrupt
            self._pressed = self._pressed or now
        self._reason = self._reason or signal.Signals(number).name

    def _watch(self, ancestors: list[int]) -> None:
        while not self._over.wait(POLL_S):
            if launcher_processes() != ancestors:
                self._reason = self._reason or "the launcher is gone"
                return


def launcher_processes() -> list[int]:
    """Process ids of the launcher above this process.

    Above a rank of ``deepspeed`` stand two: the one that starts the ranks of this machine, and the command that was
    typed (or its remote shell). Signalling the latter alone leaves ranks behind, so both are watched.
    """
    parent = os.getppid()
    if b"deepspeed.launcher.launch" not in _proc(parent, "cmdline"):
        return [parent]
    # The fourth field; the second, the name in parentheses, may hold anything.
    fields = _proc(parent, "stat").rpartition(b")")[2].split()
    return [parent, int(fields[1])] if len(fields) > 1 else [parent]


def _proc(process: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{process}/{name}").read_bytes()
    except OSError:
        # Gone, or a system without /proc: then only the parent's id is watched.
        return b""
