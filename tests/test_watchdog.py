"""A run without progress says on each rank where it waits; legitimate work is not called so."""

import json
import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import launching
import pytest
from kill_matrix import RUN
from launching import environment
from waiting import wait_until

from coconut_ds.distributed import watchdog
from coconut_ds.distributed.progress import Progress
from coconut_ds.distributed.ranks import Ranks
from coconut_ds.distributed.watchdog import EXIT_CODE, Watchdog

WORKER = Path(__file__).resolve().parent / "stalling.py"
LIMIT_S = 0.4
PATIENCE_S = 240
"""For real processes: reverse look-ups of addresses alone can take several seconds each."""


class Clock:
    """The clock of the watchdog, which only the test moves; as if the process never used the processor."""

    def __init__(self) -> None:
        self.now, self.looks = 0.0, 0

    def monotonic(self) -> float:
        self.looks += 1
        return self.now

    def process_time(self) -> float:
        return 0.0

    def idle(self) -> None:
        """Lets a quarter of the limit pass, and the watchdog notice it."""
        self.now += LIMIT_S / 4
        before = self.looks
        # The first look may have begun before the clock moved.
        wait_until(lambda: self.looks >= before + 2)

    def idle_until(self, condition) -> None:
        for _ in range(50):
            if condition():
                return
            self.idle()
        raise AssertionError("the condition was not met")


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=made.monotonic, process_time=made.process_time))
    return made


def test_a_process_that_waits_says_where_and_one_that_goes_on_says_so(clock, capsys):
    ranks = Ranks()
    ranks.progress.begin_update(7)
    with Watchdog(ranks, LIMIT_S) as watched:
        for _ in range(10):
            clock.idle()
            ranks.progress.step()
        assert not watched.stalled
        clock.idle_until(lambda: watched.stalled)
        with ranks.progress.during("validating"):
            clock.idle_until(lambda: not watched.stalled)
    said = capsys.readouterr().err
    assert "watchdog, rank 0: the run has made no progress for " in said
    assert f"at update 7, training (process {os.getpid()} on " in said
    assert "in test_a_process_that_waits_says_where_and_one_that_goes_on_says_so" in said
    assert "watchdog, rank 0: the run continues, at update 7, validating\n" in said
    assert said.count("no progress") == 1


def test_a_stalled_process_is_ended_if_asked(clock, monkeypatch, capsys):
    ended = threading.Event()
    codes = []
    monkeypatch.setattr(os, "_exit", lambda code: (codes.append(code), ended.set()))
    ranks = Ranks()
    ranks.progress.begin_update(1)
    ranks.progress.begin_update(2)
    with Watchdog(ranks, LIMIT_S, ends=True):
        clock.idle_until(ended.is_set)
    assert codes == [EXIT_CODE]
    assert "ends this process (run.watchdog_ends)" in capsys.readouterr().err


def test_nothing_is_watched_without_a_limit():
    with Watchdog(Ranks(), None):
        assert not [thread for thread in threading.enumerate() if thread.name == "watchdog"]


@pytest.mark.parametrize(
    ("host_work", "on_cpu", "cpu_s", "moved_bytes", "moves"),
    [
        # An update on a GPU: a thread that waits for the GPU may use the processor.
        (False, False, 1.0, 1 << 30, False),
        (False, True, 1.0, 0, True),
        (False, True, 0.001, 1 << 30, False),
        # Saving and loading.
        (True, False, 1.0, 0, True),
        (True, False, 0.001, 1 << 21, True),
        (True, False, 0.001, 100, False),
    ],
)
def test_what_counts_as_progress(monkeypatch, host_work, on_cpu, cpu_s, moved_bytes, moves):
    used, moved = [0.0], [0]
    monkeypatch.setattr(time, "process_time", lambda: used[0])
    monkeypatch.setattr(watchdog, "_bytes_moved", lambda: moved[0])
    progress = Progress()
    progress.is_host_work = host_work
    meter = watchdog._Meter(progress, on_cpu)
    used[0], moved[0] = cpu_s, moved_bytes
    assert meter.has_moved(1.0) is moves
    assert meter.has_moved(1.0) is False
    progress.step()
    assert meter.has_moved(1.0)
    with progress.during("waiting for another program", excused=True):
        assert all(meter.has_moved(1.0) for _ in range(3))
    assert meter.has_moved(1.0)
    assert not meter.has_moved(1.0)


def test_the_system_says_how_much_is_read_and_written(tmp_path):
    before = watchdog._bytes_moved()
    (tmp_path / "file").write_bytes(bytes(1 << 21))
    assert watchdog._bytes_moved() - before >= 1 << 21


@pytest.mark.slow
def test_ranks_say_which_one_is_stopped_and_which_ones_wait_where(tmp_path):
    """First rank 1 is stopped for a while; later it skips a collective."""
    long = [*RUN, "num_epochs=1000", "save_every=1000", "save_every_steps=null", "max_latent_stage=0"]
    command = [WORKER, tmp_path / "skip", *long, f"run.save_path={tmp_path}", "run.watchdog_s=1.5"]
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = launching.start(command, environment(), 2, stdout=file, stderr=file)
    ranks = []

    def says(*parts: str, since: int) -> bool:
        text = log.read_bytes()[since:].decode(errors="replace")
        return all(part in text for part in parts)

    def stalled() -> bool:
        (lock,) = tmp_path.glob("killed/*/lock.json")
        return json.loads(lock.read_text() or "{}").get("stalled")

    try:
        wait_until(
            lambda: [one for one in tmp_path.glob("*/*/*/metrics.jsonl") if one.stat().st_size > 1000], PATIENCE_S, log
        )
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        ranks = [one for one in map(int, children) if b"stalling" in Path(f"/proc/{one}/cmdline").read_bytes()]
        stopped_at = log.stat().st_size
        os.kill(ranks[1], signal.SIGSTOP)
        wait_until(
            lambda: says("rank 0: rank 1 gives no sign of life: it is stopped", since=stopped_at), PATIENCE_S, log
        )
        assert says(
            "watchdog, rank 0: the run has made no progress for",
            "distributed_c10d.py",
            "rank 0: rank 0 waits at update",
            since=stopped_at,
        )
        assert not says("watchdog, rank 1", since=stopped_at)
        wait_until(stalled, PATIENCE_S, log)
        os.kill(ranks[1], signal.SIGCONT)
        wait_until(lambda: says("watchdog, rank 0: the run continues, at update ", since=stopped_at), PATIENCE_S, log)
        wait_until(lambda: stalled() is False, PATIENCE_S, log)
        skipped_at = log.stat().st_size
        (tmp_path / "skip").touch()
        told = ("watchdog, rank 1: the run has made no progress", "rank 0: rank 1 waits at update ")
        wait_until(lambda: says(*told, since=skipped_at), PATIENCE_S, log)
    finally:
        for one in (*ranks, process.pid):
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        process.wait()
