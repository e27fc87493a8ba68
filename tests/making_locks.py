"""Locks as other processes and machines leave them, and the attempts of this process to take them."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coconut_ds.errors import ConfigError
from coconut_ds.runs.holder import Holder
from coconut_ds.runs.lock import RunLock

OLD_S = 1000.0


def write(folder: Path, holder: Holder | None = None, age_s: float = 0.0, name: str = "lock.json") -> Path:
    """A lock as another process left it; without a holder, an empty one."""
    path = folder / name
    path.write_bytes(b"" if holder is None else holder.as_text())
    then = path.stat().st_mtime - age_s
    os.utime(path, (then, then))
    return path


def gone() -> Holder:
    """A process of this machine that has ended; its process id now belongs to another process."""
    return replace(Holder.this_process(), started="1", token=os.urandom(6).hex())


def elsewhere(**changes: Any) -> Holder:
    return replace(Holder.this_process(), **{"host": "elsewhere", "token": os.urandom(6).hex(), **changes})


def holds(folder: Path) -> str:
    """The token in the lock."""
    return str(json.loads((folder / "lock.json").read_text())["token"])


def refusal(folder: Path) -> str:
    lines: list[str] = []
    with pytest.raises(ConfigError) as caught, RunLock(folder, lines.append):
        pass
    assert lines == []
    return str(caught.value)


def takes(folder: Path) -> list[str]:
    """Takes the lock and releases it; returns the lines that were reported."""
    lines: list[str] = []
    with RunLock(folder, lines.append) as lock:
        assert lock.still_ours()
    assert list(folder.iterdir()) == []
    return lines
