"""Notices that a run makes no progress, and says on each rank where it waits.

A thread of each rank looks every few seconds whether its process has come further, and adds it up with all ranks in the
process group's store. A run makes no progress if no rank has come further for ``limit_s`` seconds. Then each rank
writes the Python stack of its threads to its log, and rank 0 what each rank was doing, and which one gives no sign of
life. The heartbeat of the run's lock stops, so that another launch may take over.

What counts as progress: steps that the run reports (``progress.Progress``: updates, micro batches, operations of a
validation, parts of a checkpoint), and use of the processor. Of work on a GPU only the steps count, since a thread that
waits for a GPU may use the processor all the time. While the host itself works (loading, saving), what the process
reads and writes counts too.
"""

import os
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Self

from coconut_ds.distributed.progress import Progress
from coconut_ds.distributed.ranks import Ranks
from coconut_ds.distributed.status_board import StatusBoard

EXIT_CODE = 70
"""Exit code of a process that the watchdog has ended (EX_SOFTWARE)."""
LOOKS, LONGEST_PAUSE_S = 8, 10.0
"""Looks within ``limit_s``, and the largest number of seconds between two looks."""
BUSY_SHARE, BUSY_BYTES = 0.05, 1 << 20
"""Use of one core, as a share of the time between two looks, and bytes read and written, that count as progress."""
IDLE_FILES = (threading.__file__, str(Path("concurrent", "futures", "thread.py")))
"""Where threads are that wait for something to do."""
MOST_FRAMES = 25
"""Largest number of frames that are shown of each stack, those called last."""


class Watchdog:
    """Watches this process within ``with Watchdog(…)``. All ranks use it together.

    Args:
        ranks: all processes; ``ranks.progress`` is what is watched.
        limit_s: seconds without progress after which the run counts as stalled; None: nothing is watched.
        ends: whether a stalled process is then ended, with ``EXIT_CODE``. It cannot save: that needs all ranks.
    """

    def __init__(self, ranks: Ranks, limit_s: float | None, ends: bool = False) -> None:
        self._ranks, self._limit_s, self._ends = ranks, limit_s, ends
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._board: StatusBoard | None = None
        self.stalled = False
        """Whether no rank has come further for ``limit_s`` seconds."""

    def __enter__(self) -> Self:
        if self._limit_s is not None:
            pause_s = min(self._limit_s / LOOKS, LONGEST_PAUSE_S)
            if self._ranks.size > 1:
                self._board = StatusBoard(self._ranks, pause_s)
            arguments = (self._limit_s, pause_s)
            self._thread = threading.Thread(target=self._watch, args=arguments, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._closed.set()
        if self._board is not None:
            self._board.close()
        if self._thread is not None:
            self._thread.join()

    def _watch(self, limit_s: float, pause_s: float) -> None:
        meter = _Meter(self._ranks.progress, self._ranks.device.type == "cpu")
        silent_s, looked = 0.0, time.monotonic()
        while not self._closed.wait(pause_s):
            now = time.monotonic()
            # After a long suspension of this process, the other ranks first get time to come further.
            passed_s, looked = min(now - looked, 2 * pause_s), now
            moved = meter.has_moved(passed_s)
            others = self._board is not None and self._board.has_anyone_moved(moved)
            silent_s = 0.0 if moved or others else silent_s + passed_s
            if self.stalled and not silent_s:
                self.stalled = False
                if self._board is not None:
                    self._board.withdraw()
                self._say(f"the run continues, {self._where()}")
            elif not self.stalled and silent_s > limit_s:
                self.stalled = True
                self._report(silent_s, pause_s)
                if self._ends:
                    self._say(
                        "ends this process (run.watchdog_ends); the same command continues from the last checkpoint"
                    )
                    os._exit(EXIT_CODE)
                # Writing the report is no progress of the run.
                meter.has_moved(0)
                looked = time.monotonic()

    def _report(self, silent_s: float, pause_s: float) -> None:
        self._say(
            f"the run has made no progress for {silent_s:.0f} s, {self._where()} (process {os.getpid()} on "
            f"{socket.gethostname()}). Where its threads are:\n{_stacks()}"
        )
        if self._board is not None:
            frame = sys._current_frames().get(threading.main_thread().ident or 0)
            last = traceback.extract_stack(frame)[-1] if frame is not None else None
            place = "" if last is None else f", in {last.name} ({Path(last.filename).name}, line {last.lineno})"
            for line in self._board.exchange(f"waits {self._where()}{place}", 4 * pause_s):
                self._say(line)

    def _where(self) -> str:
        progress = self._ranks.progress
        return f"{'before update 1' if progress.update is None else f'at update {progress.update:,}'}, {progress.doing}"

    def _say(self, text: str) -> None:
        sys.stderr.write(f"watchdog, rank {self._ranks.rank}: {text}\n")
        sys.stderr.flush()


class _Meter:
    """Whether this process has come further since the last look."""

    def __init__(self, progress: Progress, computes_on_host: bool) -> None:
        self._progress, self._computes_on_host = progress, computes_on_host
        self._steps, self._cpu_s, self._bytes = progress.steps, time.process_time(), _bytes_moved()

    def has_moved(self, passed_s: float) -> bool:
        """Whether it has; ``passed_s``: seconds since the last look."""
        progress, cpu_s, moved_bytes = self._progress, time.process_time(), _bytes_moved()
        busy = cpu_s - self._cpu_s > BUSY_SHARE * passed_s
        transfers = moved_bytes - self._bytes > BUSY_BYTES
        stepped = progress.steps != self._steps
        self._steps, self._cpu_s, self._bytes = progress.steps, cpu_s, moved_bytes
        on_host = progress.is_host_work
        return (
            stepped or progress.is_excused or (busy and (on_host or self._computes_on_host)) or (on_host and transfers)
        )


def _bytes_moved() -> int:
    """Bytes that this process has read and written so far; 0 if the system does not tell."""
    try:
        lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()[:2]
    except OSError:
        return 0
    return sum(int(line.partition(":")[2]) for line in lines)


def _stacks() -> str:
    """The stacks of the main thread, last, and of other threads that do something."""
    frames, texts = sys._current_frames(), []
    for thread in reversed(threading.enumerate()):
        if thread is threading.current_thread() or thread.ident not in frames:
            continue
        stack = traceback.extract_stack(frames[thread.ident])[-MOST_FRAMES:]
        if thread is threading.main_thread() or not stack[-1].filename.endswith(IDLE_FILES):
            texts.append(f"thread {thread.name}:\n{''.join(traceback.format_list(stack))}")
    return "".join(texts)
