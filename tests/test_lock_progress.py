"""The lock of a run that makes no progress, and locks that appear with their content."""

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from making_locks import OLD_S, holds, refusal, takes, write
from waiting import wait_until

from coconut_ds.errors import ConfigError
from coconut_ds.runs.holder import Holder
from coconut_ds.runs.lock import RunLock
from coconut_ds.runs.lock_file import create_with


def test_the_heartbeat_stops_while_the_run_makes_no_progress(tmp_path: Path) -> None:
    stalled = [False]
    with RunLock(tmp_path, lambda line: None, heartbeat_s=0.01, stalled=lambda: stalled[0]) as lock:
        lock.name_attempt("a")

        def written() -> dict[str, Any]:
            return json.loads(lock.path.read_text() or "{}")

        stalled[0] = True
        wait_until(lambda: written().get("stalled") is True)
        os.utime(lock.path, (1, 1))
        beats = [0]
        lock._stalled = lambda: beats.append(0) or True  # type: ignore[method-assign]
        wait_until(lambda: len(beats) > 3)
        assert lock.path.stat().st_mtime == 1
        lock._stalled = lambda: False  # type: ignore[method-assign]
        wait_until(lambda: lock.path.stat().st_mtime > 1 and written().get("stalled") is False)
        assert (written()["attempt"], lock.still_ours()) == ("a", True)
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_progress_is_taken_over_though_its_process_lives(tmp_path: Path) -> None:
    """This process stands for the one that makes no progress; it loses the lock."""
    holder = replace(Holder.this_process(), stalled=True, token=os.urandom(6).hex())
    write(tmp_path, holder, age_s=30)
    assert "whose run makes no progress, last sign of life 30 s ago" in refusal(tmp_path)
    write(tmp_path, holder, age_s=OLD_S)
    (line,) = takes(tmp_path)
    assert "whose run makes no progress, which gave no sign of life for 100" in line


@pytest.mark.parametrize("content", [b"", b'{"host": "a", "pi'])
def test_a_launch_waits_until_a_broken_lock_is_stale(tmp_path: Path, content: bytes) -> None:
    """Instead of failing with the code of a mistake. Such files are left by machines and file systems that failed."""
    write(tmp_path).write_bytes(content)
    lines: list[str] = []
    with RunLock(tmp_path, lines.append, heartbeat_s=0.05, stale_after_s=0.6, waits=True) as lock:
        assert lock.still_ours()
    assert "held by a process that has not written its id yet" in lines[0]
    assert "taken over from a process that has not written its id yet" in lines[1]


def test_a_launch_that_waits_for_a_broken_lock_sees_its_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The holder needed more than half a second to write its id."""
    path, holder = write(tmp_path), replace(Holder.this_process(), token=os.urandom(6).hex())
    wait = RunLock._wait_for

    def late(self: RunLock, other: Any) -> Any:
        path.write_bytes(holder.as_text())
        return wait(self, other)

    monkeypatch.setattr(RunLock, "_wait_for", late)
    with pytest.raises(ConfigError, match="already in progress"), RunLock(tmp_path, print, 0.05, 0.6, waits=True):
        pass
    assert holds(tmp_path) == holder.token


def test_a_lock_appears_with_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, part, seen = tmp_path / "lock", tmp_path / "part", []
    link = os.link
    monkeypatch.setattr(os, "link", lambda *names: (seen.append(path.exists()), link(*names)))
    assert create_with(path, b"one", part)
    assert not create_with(path, b"two", part)
    assert (seen[0], path.read_bytes(), list(tmp_path.iterdir())) == (False, b"one", [path])


def test_a_full_disk_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, text: bytes) -> int:
        self.touch()
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="full"):
        create_with(tmp_path / "lock", b"one", tmp_path / "part")
    assert list(tmp_path.iterdir()) == []


def test_file_systems_without_hard_links_have_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*names: Any) -> None:
        raise OSError(errno.EPERM, "no links")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "lock"
    assert create_with(path, b"one", tmp_path / "part")
    assert not create_with(path, b"two", tmp_path / "part")
    assert path.read_bytes() == b"one"
    (tmp_path / "run").mkdir()
    assert takes(tmp_path / "run") == []
