"""The process that holds a lock: what tells it from all others, and whether it still lives, as far as can be known."""

import json
import os
import re
import secrets
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from coconut_ds.runs.manifest import now

ENDED = "ZXx"
"""States of a process that ended and whose parent has not looked yet."""
TOKEN = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True)
class Holder:
    """The process that wrote a lock."""

    host: str
    boot: str
    """Tells machines of one name, and starts of one machine, from each other; empty where the system has no such id."""
    pid_space: str
    """Process ids of two containers on one machine do not mean the same."""
    pid: int
    started: str
    """Tells processes that had one id from each other; empty where the system does not say."""
    attempt: str | None
    time: str
    token: str = field(default_factory=lambda: secrets.token_hex(6))
    """Tells this lock from all others."""

    @classmethod
    def this_process(cls) -> "Holder":
        """As a holder of a new lock."""
        pid = os.getpid()
        return cls(*_machine(), pid, _process_facts(pid)[1], None, now())

    @classmethod
    def from_text(cls, text: bytes) -> "Holder | None":
        """What ``as_text`` wrote; None where it is empty or broken."""
        try:
            holder = cls(**json.loads(text))
            return holder if 0 < holder.pid < 1 << 31 and TOKEN.fullmatch(holder.token) else None
        except (ValueError, TypeError):
            return None

    def as_text(self) -> bytes:
        """The content of its lock."""
        return json.dumps(asdict(self), indent=2).encode()

    def wrote(self, text: bytes) -> bool:
        """Whether a lock with this content is its own."""
        found = self.from_text(text)
        return found is not None and found.token == self.token

    def lives(self) -> bool | None:
        """Whether the process is there; None where this machine cannot know."""
        if (self.host, self.boot, self.pid_space) != _machine():
            return None
        # Permission is refused where it is there and another user's.
        with suppress(PermissionError):
            try:
                os.kill(self.pid, 0)
            except ProcessLookupError:
                return False
        state, started = _process_facts(self.pid)
        return state not in ENDED and started == self.started if started and self.started else None


def _machine() -> tuple[str, str, str]:
    """Host, start of the machine and space of process ids: where all agree, a process id means the same."""
    boot, pid_space = "", ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    with suppress(OSError):
        pid_space = os.readlink("/proc/self/ns/pid")
    return socket.gethostname(), boot, pid_space


def _process_facts(pid: int) -> tuple[str, str]:
    """State and start of a process; empty where the system does not say."""
    try:
        # Its name, in brackets, may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return fields[0].decode(), fields[19].decode()
    except (OSError, IndexError):
        return "", ""
