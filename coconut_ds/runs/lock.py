"""A lock file that lets only one launch at a time work on a run, also when machines share the folder.

The file names its holder. It appears with its content (``lock_file``), and the holder updates its modification time
every ``heartbeat_s`` seconds, as long as the run makes progress. A lock is *stale* if its holder's process no longer
exists, or if the file has not been touched for ``stale_after_s`` seconds and either this machine cannot check the
process or the holder has written that its run makes no progress. Another launch may replace a stale lock.

To replace or remove a lock, a process must first create a *replacement lock*: a second lock file whose name contains
the token of the first. This guarantees that the lock being replaced is the one that was found stale, however long the
process was suspended in between, and that only one process replaces it. A stale replacement lock is itself replaced by
the same procedure.

One race remains: a process on another machine can be suspended for more than ``stale_after_s`` seconds between its last
check and the replacement, which follows immediately. The holder whose lock it replaces notices at its next heartbeat.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from coconut_ds.errors import ConfigError
from coconut_ds.runs.holder import Holder
from coconut_ds.runs.lock_file import create_with

FILE = "lock.json"
"""Name of the lock file, in the folder that all attempts of a run share."""
PATIENCE_S, PAUSE_S = 0.5, 0.02
"""Seconds to wait for the content of an empty lock file, which its creator writes a moment after creating it where a
file system has no hard links, and seconds between two looks."""


@dataclass(frozen=True)
class _Seen:
    """A lock as it was found on the disk."""

    holder: Holder | None
    """None if the file is empty or cannot be parsed."""
    token: str
    silent_s: float
    """Seconds since the last heartbeat, by the clock of the file system."""

    def describe(self) -> str:
        """The holder, for messages."""
        holder = self.holder
        if holder is None:
            return "a process that has not written its id yet"
        makes = ", whose run makes no progress" if holder.stalled else ""
        attempt = f" (attempt {holder.attempt})" if holder.attempt else ""
        return f"process {holder.pid} on {holder.host}{attempt} since {holder.time}{makes}"


class RunLock:
    """A context manager that holds the lock of a run.

    If this process was suspended for so long that another launch took the lock over, ``still_ours`` returns False.
    """

    def __init__(
        self,
        folder: Path,
        notify: Callable[[str], None],
        heartbeat_s: float = 10,
        stale_after_s: float = 60,
        waits: bool = False,
        stalled: Callable[[], bool] = lambda: False,
    ) -> None:
        """Prepares the lock; ``with`` takes it.

        Args:
            folder: the folder that all attempts of the run share.
            notify: receives one line when a stale lock is taken over, and one before waiting.
            heartbeat_s: seconds between two updates of the file's modification time.
            stale_after_s: seconds without a heartbeat after which a holder on another machine counts as dead.
            waits: if this machine cannot tell whether the holder lives, or the holder's run makes no progress, wait up
                to ``stale_after_s`` for a heartbeat before raising. A cluster may restart a job seconds after the
                machine that ran it has died.
            stalled: whether the run makes no progress; the heartbeat then stops.
        """
        assert 0 < heartbeat_s < stale_after_s
        self.path, self.lost = folder / FILE, False
        """``lost`` becomes True, for good, once the lock file is found missing or written by another process."""
        self._notify, self._heartbeat_s, self._stale_after_s = notify, heartbeat_s, stale_after_s
        self._waits, self._stalled = waits, stalled
        self._holder = Holder.this_process()
        self._stop = threading.Event()
        # Keeps the heartbeat thread from reading the file while the main thread writes to it.
        self._file_in_use = threading.Lock()
        self._thread = threading.Thread(target=self._beat, name="run-lock", daemon=True)

    def __enter__(self) -> Self:
        """Takes the lock.

        Raises:
            ConfigError: another process holds the lock, or the folder cannot be written to.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            other = self._take(self.path)
            if other is not None and self._waits:
                other = self._wait_for(other)
        except OSError as error:
            raise ConfigError(
                f"{self.path}: cannot be written ({error}); set run.save_path to another folder"
            ) from error
        if other is not None:
            raise ConfigError(
                f"{self.path}: this run is already in progress, by {other.describe()}, last sign of life "
                f"{other.silent_s:.0f} s ago; wait for it, stop it, or delete this file if it cannot be alive"
            )
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Removes the lock if it is still ours."""
        self._stop.set()
        self._thread.join()
        # If the folder is gone or read-only by now, the lock stays and becomes stale.
        with suppress(OSError):
            right = _replacement_lock(self.path, self._holder.token)
            if not self.lost and _create(right, self._holder):
                try:
                    if self.still_ours():
                        self.path.unlink()
                finally:
                    right.unlink(missing_ok=True)

    def still_ours(self) -> bool:
        """Whether this process still holds the lock; reads the file."""
        with self._file_in_use, suppress(OSError), self._ours():
            pass
        return not self.lost

    def name_attempt(self, attempt: str, launch: int | None = None) -> None:
        """Writes into the lock file which attempt its holder works on, and the number of its launch folder."""
        with self._file_in_use:
            self._holder = replace(self._holder, attempt=attempt, launch=launch)
            self._rewrite()

    def _rewrite(self) -> None:
        """Writes the holder into the file, if it is still ours."""
        with suppress(OSError), self._ours(os.O_RDWR) as file:
            if file is not None:
                os.ftruncate(file, os.pwrite(file, self._holder.as_text(), 0))

    @contextmanager
    def _ours(self, flags: int = os.O_RDONLY) -> Iterator[int | None]:
        """Yields the descriptor of the lock file, or None once the lock is lost.

        Operations on the descriptor cannot affect a lock that replaces this one in the meantime.
        """
        try:
            file = os.open(self.path, flags)
        except FileNotFoundError:
            self.lost = True
            yield None
            return
        try:
            self.lost = self.lost or not self._holder.wrote(os.read(file, 1 << 16))
            yield None if self.lost else file
        finally:
            os.close(file)

    def _beat(self) -> None:
        while not self.lost and not self._stop.wait(self._heartbeat_s):
            stalled = self._stalled()
            with self._file_in_use:
                if stalled != self._holder.stalled:
                    self._holder = replace(self._holder, stalled=stalled)
                    self._rewrite()
                # A temporary error of the file system does not mean that the lock is lost.
                with suppress(OSError), self._ours() as file:
                    if file is not None and not stalled:
                        os.utime(file)

    def _wait_for(self, other: _Seen) -> _Seen | None:
        """Waits for a holder that may be dead: this machine cannot check its process, or its run makes no progress.

        Returns None once the holder is stale and this process has taken the lock; else the lock of a live holder.
        """
        last: _Seen | None = other
        if other.holder is not None and other.holder.lives() is not None and not other.holder.stalled:
            return other
        self._notify(
            f"{self.path}: held by {other.describe()}, silent for {other.silent_s:.0f} s; waiting until it gives a "
            f"sign of life or has been silent for {self._stale_after_s:.0f} s"
        )
        while last is not None and last.token == other.token and last.silent_s >= other.silent_s:
            other = last
            time.sleep(min(1.0, self._heartbeat_s / 2))
            last = self._take(self.path)
        return last

    def _take(self, path: Path) -> _Seen | None:
        """Takes the lock at ``path`` and returns None; or returns the lock of the process that holds or replaces it."""
        while not _create(path, self._holder):
            seen = self._look(path)
            if seen is None:
                continue
            if self._why_stale(seen) is None:
                return seen
            right = _replacement_lock(path, seen.token)
            other = self._take(right)
            if other is not None:
                return other
            try:
                # Check again: while this process holds the replacement lock, no other process can change the lock.
                again = self._look(path)
                reason = None if again is None or again.token != seen.token else self._why_stale(again)
                if reason is not None:
                    self._replace(path)
                    if path == self.path:
                        self._notify(f"{path}: taken over from {seen.describe()}, which {reason}")
                    return None
            finally:
                right.unlink(missing_ok=True)
        return None

    def _replace(self, path: Path) -> None:
        new = path.with_name(f".{FILE}.new.{self._holder.token}")
        try:
            assert _create(new, self._holder)
            os.replace(new, path)
        finally:
            new.unlink(missing_ok=True)

    def _why_stale(self, seen: _Seen) -> str | None:
        lives = None if seen.holder is None else seen.holder.lives()
        stalled = seen.holder is not None and seen.holder.stalled
        if (lives is None or stalled) and seen.silent_s > self._stale_after_s:
            return f"gave no sign of life for {seen.silent_s:.0f} s"
        return "no longer exists" if lives is False else None

    def _look(self, path: Path) -> _Seen | None:
        """The lock at ``path``; None if there is no file."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            # Read the clock before the lock's modification time: if this process is suspended in between, the lock must
            # not appear older than it was.
            clock = self._file_system_clock()
            try:
                # Open the file instead of calling stat: on a network file system, opening refreshes cached attributes.
                with path.open("rb") as file:
                    facts, holder = os.fstat(file.fileno()), Holder.from_text(file.read())
            except FileNotFoundError:
                return None
            silent_s = max(0.0, clock - facts.st_mtime)
            if holder is not None:
                return _Seen(holder, holder.token, silent_s)
            if silent_s > self._stale_after_s or time.monotonic() > deadline:
                return _Seen(None, f"{facts.st_ino:x}-{facts.st_mtime_ns:x}", silent_s)
            time.sleep(PAUSE_S)

    def _file_system_clock(self) -> float:
        """The modification time that a file touched now would get; the clocks of machines may differ."""
        probe = self.path.with_name(f".{FILE}.clock.{self._holder.token}")
        try:
            with probe.open("wb") as file:
                os.utime(file.fileno())
                return os.fstat(file.fileno()).st_mtime
        finally:
            probe.unlink(missing_ok=True)


def _replacement_lock(path: Path, token: str) -> Path:
    """Path of the lock that a process must hold to replace or remove the lock at ``path`` that has this token."""
    return path.with_name(f".{path.name.removeprefix('.')}.{token}")


def _create(path: Path, holder: Holder) -> bool:
    """Creates the lock file at ``path`` with the holder in it; returns False if a file already exists."""
    if not create_with(path, holder.as_text(), path.with_name(f".{FILE}.part.{holder.token}")):
        return False
    with suppress(FileNotFoundError):
        # If this process was suspended while it wrote into an empty file, another may have replaced it.
        return holder.wrote(path.read_bytes())
    return False
