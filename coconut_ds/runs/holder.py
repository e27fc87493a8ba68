"""The process that holds a lock: what identifies it, and whether it is still alive, as far as this machine can know."""

import json
import os
import re
import secrets
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from coconut_ds.runs.manifest import now
from coconut_ds.strict_json import parse_json

ENDED = "ZXx"
"""States in ``/proc/<pid>/stat`` of a process that has ended and has not been reaped by its parent."""
TOKEN = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True)
class Holder:
    """The process that wrote a lock."""

    host: str
    boot: str
    """Boot id: distinguishes machines with the same name, and boots of one machine; empty if the system has none."""
    pid_space: str
    """PID namespace: the same process id means different processes in two containers of one machine."""
    pid: int
    started: str
    """Start time in clock ticks: distinguishes processes that reused one id; empty if the system does not report it."""
    attempt: str | None
    time: str
    token: str = field(default_factory=lambda: secrets.token_hex(6))
    """Random; identifies this lock."""
    launch: int | None = None
    """Number of the holder's launch folder (see ``fencing``); None before it has one."""
    stalled: bool = False
    """Whether the run makes no progress (see ``watchdog``): another launch may then take it over although this process
    exists."""

    @classmethod
    def this_process(cls) -> "Holder":
        """This process, as the holder of a new lock."""
        pid = os.getpid()
        return cls(*_machine(), pid, _process_facts(pid)[1], None, now())

    @classmethod
    def from_text(cls, text: bytes) -> "Holder | None":
        """Parses what ``as_text`` wrote; None if it is empty or malformed."""
        try:
            holder = cls(**parse_json(text.decode()))
            return holder if 0 < holder.pid < 1 << 31 and TOKEN.fullmatch(holder.token) else None
        except (ValueError, TypeError):
            return None

    def as_text(self) -> bytes:
        """The content of the lock file."""
        return json.dumps(asdict(self), indent=2).encode()

    def wrote(self, text: bytes) -> bool:
        """Whether a lock file with this content was written by this holder."""
        found = self.from_text(text)
        return found is not None and found.token == self.token

    def lives(self) -> bool | None:
        """Whether the process exists; None if this machine cannot tell (another machine, boot or container)."""
        if (self.host, self.boot, self.pid_space) != _machine():
            return None
        # PermissionError means that the process exists and belongs to another user.
        with suppress(PermissionError):
            try:
                os.kill(self.pid, 0)
            except ProcessLookupError:
                return False
        state, started = _process_facts(self.pid)
        return state not in ENDED and started == self.started if started and self.started else None


def _machine() -> tuple[str, str, str]:
    """Host name, boot id and PID namespace: if all three agree, a process id means the same process."""
    boot, pid_space = "", ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    with suppress(OSError):
        pid_space = os.readlink("/proc/self/ns/pid")
    return socket.gethostname(), boot, pid_space


def _process_facts(pid: int) -> tuple[str, str]:
    """State and start time of a process; empty strings if the system does not report them."""
    try:
        # The process name, in parentheses, may contain any character.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return fields[0].decode(), fields[19].decode()
    except (OSError, IndexError):
        return "", ""
