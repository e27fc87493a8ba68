"""One launch at a time holds a run. Who lives is never replaced; who does not always is, and by one other."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

import coconut_ds
from coconut_ds.errors import ConfigError
from coconut_ds.runs import lock as lock_module
from coconut_ds.runs.holder import Holder
from coconut_ds.runs.lock import RunLock

HOLD = """
import sys
from pathlib import Path
from coconut_ds.runs.lock import RunLock
with RunLock(Path(sys.argv[1]), print, heartbeat_s=0.05) as lock:
    lock.name_attempt("attempt-1")
    print("held", flush=True)
    sys.stdin.read()
"""
COMPETE = """
import sys, time
from pathlib import Path
from coconut_ds.errors import ConfigError
from coconut_ds.runs.lock import RunLock
print("ready", flush=True)
for line in sys.stdin:
    folder, begin = line.split()
    said = []
    lock = RunLock(Path(folder), said.append)
    while time.time() < float(begin):
        pass
    try:
        lock.__enter__()
        print("won", len(said), flush=True)
    except ConfigError as error:
        print("refused", flush=True)
        continue
    sys.stdin.readline()
    print(lock.still_ours(), flush=True)
    lock.__exit__()
"""
OLD_S = 1000.0


def start(program: str, *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(coconut_ds.__file__).parents[1],
    )
    return process


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def tell(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of ``tmp_path``."""
    with start(HOLD, str(tmp_path)) as process:
        assert line_of(process) == "held"
        yield process
        process.kill()


def write(folder: Path, holder: Holder | None = None, age_s: float = 0.0, name: str = "lock.json") -> Path:
    """A lock as another process left it; without a holder, an empty one."""
    path = folder / name
    path.write_bytes(b"" if holder is None else holder.as_text())
    then = path.stat().st_mtime - age_s
    os.utime(path, (then, then))
    return path


def gone() -> Holder:
    """A process of this machine that has ended: its id is another's now."""
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
    """Takes the lock, and lets it go. What was said."""
    lines: list[str] = []
    with RunLock(folder, lines.append) as lock:
        assert lock.still_ours()
    assert list(folder.iterdir()) == []
    return lines


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_run_that_is_going_on_is_refused_until_it_ends(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    said = refusal(tmp_path)
    for part in (str(tmp_path / "lock.json"), f"process {holder.pid} on ", "(attempt attempt-1) since 20", "delete"):
        assert part in said
    assert "last sign of life 0 s ago" in said
    # Stopped, it can go on at any time, however long it has been silent.
    holder.send_signal(signal.SIGSTOP)
    time.sleep(0.1)
    then = time.time() - OLD_S
    os.utime(tmp_path / "lock.json", (then, then))
    assert "last sign of life 100" in refusal(tmp_path)
    holder.send_signal(signal.SIGCONT)
    assert holder.communicate("")[0] == ""
    assert takes(tmp_path) == []


def test_the_lock_of_a_killed_holder_is_taken_over_at_once(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    """Even while nobody has collected the process."""
    holder.kill()
    eventually(lambda: Path(f"/proc/{holder.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
    (line,) = takes(tmp_path)
    assert f"taken over from process {holder.pid} on" in line
    assert line.endswith("which no longer exists")


@pytest.mark.slow
def test_of_two_that_take_over_at_once_one_wins(tmp_path: Path) -> None:
    with start(COMPETE) as one, start(COMPETE) as two:
        both = (one, two)
        assert [line_of(each) for each in both] == ["ready", "ready"]
        for number in range(20):
            folder = tmp_path / str(number)
            folder.mkdir()
            # Every other time there is nothing yet.
            stale = number % 2
            if stale:
                write(folder, gone())
            begin = time.time() + 0.02
            for each in both:
                tell(each, f"{folder} {begin}")
            answers = [line_of(each) for each in both]
            assert sorted(answers) == ["refused", f"won {stale}"]
            winner = both[answers.index(f"won {stale}")]
            assert json.loads((folder / "lock.json").read_text())["pid"] == winner.pid
            tell(winner, "")
            assert line_of(winner) == "True"
            eventually(lambda folder=folder: list(folder.iterdir()) == [])  # type: ignore[misc]
        for each in both:
            each.communicate()


@pytest.mark.parametrize("then", ["holds", "has ended", "has ended, and a third holds"])
def test_a_judge_that_slept_replaces_only_the_lock_it_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """While it slept after its judgement, another replaced the stale lock."""
    write(tmp_path, gone())
    with ExitStack() as others:
        why_stale = RunLock._why_stale

        def slow(self: RunLock, seen: Any) -> str | None:
            found = why_stale(self, seen)
            monkeypatch.setattr(RunLock, "_why_stale", why_stale)
            first = others.enter_context(RunLock(tmp_path, lambda line: None))
            if then != "holds":
                others.pop_all().close()
            if then == "has ended, and a third holds":
                first = others.enter_context(RunLock(tmp_path, lambda line: None))
            assert first.still_ours() == (then != "has ended")
            winners.append(first)
            return found

        winners: list[RunLock] = []
        monkeypatch.setattr(RunLock, "_why_stale", slow)
        if then == "has ended":
            assert takes(tmp_path) == []
        else:
            refusal(tmp_path)
            assert winners[0].still_ours()
    assert list(tmp_path.iterdir()) == []


def test_nobody_else_replaces_a_lock_while_one_is_at_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither another judge nor the holder itself, should it wake up and end."""
    with RunLock(tmp_path, lambda line: None) as sleeper:
        write(tmp_path, replace(sleeper._holder, started="1"))
        replaces = RunLock._replace

        def slow(self: RunLock, path: Path) -> None:
            monkeypatch.setattr(RunLock, "_replace", replaces)
            assert f"process {os.getpid()}" in refusal(tmp_path)
            sleeper.__exit__()
            assert holds(tmp_path) == sleeper._holder.token
            replaces(self, path)

        monkeypatch.setattr(RunLock, "_replace", slow)
        with RunLock(tmp_path, lambda line: None) as taker:
            assert holds(tmp_path) == taker._holder.token
            assert taker.still_ours()
            assert not sleeper.still_ours()


def test_a_process_that_died_while_it_took_over_or_let_go_is_dealt_with(tmp_path: Path) -> None:
    stale, taker = gone(), gone()
    write(tmp_path, stale)
    write(tmp_path, taker, name=f".lock.json.{stale.token}")
    write(tmp_path, taker, name=f".lock.json.{stale.token}.{taker.token}")
    (line,) = takes(tmp_path)
    assert "lock.json: taken over" in line
    # A right that is held by one who lives is respected.
    write(tmp_path, stale)
    write(tmp_path, elsewhere(), name=f".lock.json.{stale.token}")
    assert "on elsewhere" in refusal(tmp_path)


@pytest.mark.parametrize("key", ["host", "boot", "pid_space"])
def test_a_process_that_cannot_be_asked_lives_as_long_as_its_file_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """By the clock of the file system alone: those of machines differ."""
    other = elsewhere(**{"host": Holder.this_process().host, key: "another", "pid": 1 << 30})
    write(tmp_path, other, age_s=30)
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: 1e12)
        assert "last sign of life 30 s ago" in refusal(tmp_path)
    write(tmp_path, other, age_s=90)
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: 0.0)
        (line,) = takes(tmp_path)
    assert line.endswith("gave no sign of life for 90 s")


def test_who_waits_takes_over_from_a_machine_that_is_gone_and_gives_way_to_one_that_lives(tmp_path: Path) -> None:
    lines: list[str] = []
    options: dict[str, Any] = {"heartbeat_s": 0.02, "stale_after_s": 0.5, "waits": True}
    write(tmp_path, elsewhere(), age_s=0.2)
    with RunLock(tmp_path, lines.append, **options) as lock:
        assert lock.still_ours()
    assert len(lines) == 2
    assert "waiting until it gives a sign of life" in lines[0]
    assert "taken over" in lines[1]
    other = write(tmp_path, elsewhere(), age_s=0.2)
    lines.clear()

    def live(line: str) -> None:
        lines.append(line)
        os.utime(other)

    with pytest.raises(ConfigError, match="already in progress"), RunLock(tmp_path, live, **options):
        pass
    assert len(lines) == 1


@pytest.mark.parametrize("content", [b"", b'{"host": "a", "pi', b"[]", b'{"pid": 1}'])
def test_a_broken_lock_goes_by_its_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
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
        eventually(lambda: lock.path.stat().st_mtime > 1)
        other = elsewhere()
        new = write(tmp_path, other, name="new", age_s=OLD_S)
        then = new.stat().st_mtime
        new.rename(lock.path)
        eventually(lambda: lock.lost)
        assert not lock.still_ours()
        assert lock.path.stat().st_mtime == then
    assert holds(tmp_path) == other.token
    lock.path.unlink()
    with RunLock(tmp_path, lambda line: None):
        # Not noticed before the end.
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
