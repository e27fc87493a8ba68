"""The lock of a run: written for people, touched by its holder, refused while another launch holds it."""

import errno
import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from making_locks import OLD_S, elsewhere, holds, refusal, takes, write
from waiting import wait_until

from coconut_ds.runs import lock as lock_module
from coconut_ds.runs.lock import RunLock


@pytest.mark.parametrize("content", [b"", b'{"host": "a", "pi', b"[]", b'{"pid": 1}'])
def test_a_broken_lock_is_judged_by_its_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(lock_module, "PATIENCE_S", 0.05)
    write(tmp_path, age_s=30).write_bytes(content)
    assert "a process that has not written its id yet" in refusal(tmp_path)
    path = write(tmp_path)
    path.write_bytes(content)
    os.utime(path, (1, 1))
    assert len(takes(tmp_path)) == 1


def test_a_lock_that_is_just_being_written_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    other = elsewhere()
    monkeypatch.setattr(time, "sleep", lambda seconds: write(tmp_path, other))
    assert "on elsewhere" in refusal(tmp_path)


def test_the_holder_touches_its_lock_and_no_other(tmp_path: Path) -> None:
    with RunLock(tmp_path, lambda line: None, heartbeat_s=0.01) as lock:
        lock.name_attempt("a")
        os.utime(lock.path, (1, 1))
        wait_until(lambda: lock.path.stat().st_mtime > 1)
        other = elsewhere()
        new = write(tmp_path, other, name="new", age_s=OLD_S)
        then = new.stat().st_mtime
        new.rename(lock.path)
        wait_until(lambda: lock.lost)
        assert not lock.still_ours()
        assert lock.path.stat().st_mtime == then
    assert holds(tmp_path) == other.token
    lock.path.unlink()
    with RunLock(tmp_path, lambda line: None):
        # This launch does not notice it before it ends.
        write(tmp_path, other)
    assert holds(tmp_path) == other.token


def test_a_lock_that_is_gone_is_lost_and_one_that_cannot_be_read_for_a_moment_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RunLock(tmp_path / "new" / "folder", lambda line: None) as lock:
        with monkeypatch.context() as patch:

            def fails(*arguments: Any) -> int:
                raise OSError(errno.EIO, "no answer")

            patch.setattr(os, "open", fails)
            assert lock.still_ours()
        text = lock.path.read_bytes()
        lock.path.unlink()
        assert not lock.still_ours()
        lock.path.write_bytes(text)
        assert not lock.still_ours()
        lock.path.unlink()
        lock.path.parent.rmdir()


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "file/lock.json: cannot be written" in refusal(tmp_path / "file")


def test_a_lock_is_text_that_people_can_read(tmp_path: Path) -> None:
    with RunLock(tmp_path, lambda line: None) as lock:
        lock.name_attempt("20250101-000000-abcd")
        values = json.loads(lock.path.read_text())
        assert values == asdict(lock._holder)
        assert (values["pid"], values["attempt"]) == (os.getpid(), "20250101-000000-abcd")
