"""A stale lock is replaced by exactly one other launch; the lock of a living process never is."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from making_locks import OLD_S, elsewhere, gone, holds, refusal, takes, write
from waiting import wait_until

import coconut_ds
from coconut_ds.errors import ConfigError
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


def test_a_running_run_is_refused_until_it_ends(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    said = refusal(tmp_path)
    for part in (str(tmp_path / "lock.json"), f"process {holder.pid} on ", "(attempt attempt-1) since 20", "delete"):
        assert part in said
    assert "last sign of life 0 s ago" in said
    # A stopped process can continue at any time, however long it has been silent.
    holder.send_signal(signal.SIGSTOP)
    time.sleep(0.1)
    then = time.time() - OLD_S
    os.utime(tmp_path / "lock.json", (then, then))
    assert "last sign of life 100" in refusal(tmp_path)
    holder.send_signal(signal.SIGCONT)
    assert holder.communicate("")[0] == ""
    assert takes(tmp_path) == []


def test_the_lock_of_a_killed_holder_is_taken_over_at_once(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    """Even while the killed process is a zombie."""
    holder.kill()
    wait_until(lambda: Path(f"/proc/{holder.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
    (line,) = takes(tmp_path)
    assert f"taken over from process {holder.pid} on" in line
    assert line.endswith("which no longer exists")


@pytest.mark.slow
def test_if_two_take_over_at_once_one_wins(tmp_path: Path) -> None:
    with start(COMPETE) as one, start(COMPETE) as two:
        both = (one, two)
        assert [line_of(each) for each in both] == ["ready", "ready"]
        for number in range(20):
            folder = tmp_path / str(number)
            folder.mkdir()
            # Every other time there is no lock yet.
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
            wait_until(lambda folder=folder: list(folder.iterdir()) == [])  # type: ignore[misc]
        for each in both:
            each.communicate()


@pytest.mark.parametrize("then", ["holds", "has ended", "has ended, and a third holds"])
def test_a_judge_that_slept_replaces_only_the_lock_it_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """After it judged the lock stale, it slept, and another launch replaced the lock."""
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


def test_only_one_launch_at_a_time_replaces_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither another launch that judges it stale, nor the holder itself if it wakes up and ends."""
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


def test_files_of_a_process_that_died_while_it_took_over_are_replaced(tmp_path: Path) -> None:
    stale, taker = gone(), gone()
    write(tmp_path, stale)
    write(tmp_path, taker, name=f".lock.json.{stale.token}")
    write(tmp_path, taker, name=f".lock.json.{stale.token}.{taker.token}")
    (line,) = takes(tmp_path)
    assert "lock.json: taken over" in line
    # The right to replace it is respected while its owner may be alive.
    write(tmp_path, stale)
    write(tmp_path, elsewhere(), name=f".lock.json.{stale.token}")
    assert "on elsewhere" in refusal(tmp_path)


@pytest.mark.parametrize("key", ["host", "boot", "pid_space"])
def test_a_process_elsewhere_is_alive_while_its_file_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """Only the clock of the file system counts, since the clocks of machines differ."""
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


def test_waiting_takes_over_from_a_dead_machine_and_gives_way_to_a_living_one(tmp_path: Path) -> None:
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
