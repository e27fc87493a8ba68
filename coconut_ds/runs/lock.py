"""One launch at a time works on a run: a lock file that says who holds it and, by its time, that the holder lives.

Works where machines share the folder: the file is made with create-exclusive and touched by the holder; a lock whose
holder does not live is *replaced*. Whoever wants to replace or remove a lock first takes the right to do so, a second
lock of the same kind with the token of the first in its name. So the lock that is replaced is the one that was judged,
however long its judge slept before, and of several judges one has the right. Who died with such a right is dealt with
in the same way. What is left: a judge on another machine that sleeps for ``stale_after_s`` between its last look and
the very next call. The one whose lock it then replaces notices, as each holder does.
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

FILE = "lock.json"
"""In the folder that all attempts of a run share."""
PATIENCE_S, PAUSE_S = 0.5, 0.02
"""How long a lock may stay empty, since who makes it writes it a moment later."""


@dataclass(frozen=True)
class _Seen:
    """A lock as it was found."""

    holder: Holder | None
    """None: the file is empty or broken."""
    token: str
    silent_s: float
    """Time since the last sign of life, by the clock of the file system."""

    def describe(self) -> str:
        """Who holds it."""
        who = self.holder
        if who is None:
            return "a process that has not written who it is"
        return f"process {who.pid} on {who.host}{f' (attempt {who.attempt})' if who.attempt else ''} since {who.time}"


class RunLock:
    """Held inside one ``with``. Should the holder sleep so long that another took the lock, ``still_ours`` tells."""

    def __init__(
        self,
        folder: Path,
        notify: Callable[[str], None],
        heartbeat_s: float = 10,
        stale_after_s: float = 60,
        waits: bool = False,
    ) -> None:
        """``notify`` gets one line where the lock of a holder that no longer lives is taken over.

        With ``waits``, a holder on another machine is given the time to show that it lives before it is an error: a
        cluster starts a job again seconds after its machine died.
        """
        assert 0 < heartbeat_s < stale_after_s
        self.path, self.lost = folder / FILE, False
        """``lost``: the lock was gone or another's when last looked at, and so it stays."""
        self._notify, self._heartbeat_s, self._stale_after_s = notify, heartbeat_s, stale_after_s
        self._waits = waits
        self._holder = Holder.this_process()
        self._stop = threading.Event()
        # Heartbeats must not read while this process writes.
        self._file_in_use = threading.Lock()
        self._thread = threading.Thread(target=self._beat, name="run-lock", daemon=True)

    def __enter__(self) -> Self:
        """Takes the lock.

        Raises:
            ConfigError: another process holds it, or the folder cannot be written to.
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
                f"{self.path}: this run is already going on, by {other.describe()}, last sign of life "
                f"{other.silent_s:.0f} s ago; wait for it, stop it, or delete this file if it cannot be alive"
            )
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Removes the lock if it is still ours."""
        self._stop.set()
        self._thread.join()
        # Where the folder went or cannot be written to any more, the lock ages.
        with suppress(OSError):
            right = _replacement_lock(self.path, self._holder.token)
            if not self.lost and _create(right, self._holder):
                try:
                    if self.still_ours():
                        self.path.unlink()
                finally:
                    right.unlink(missing_ok=True)

    def still_ours(self) -> bool:
        """Whether this process still holds the lock, by what the file says now."""
        with self._file_in_use, suppress(OSError), self._ours():
            pass
        return not self.lost

    def name_attempt(self, attempt: str) -> None:
        """Adds to the lock which attempt its holder works on."""
        self._holder = replace(self._holder, attempt=attempt)
        with self._file_in_use, suppress(OSError), self._ours(os.O_RDWR) as file:
            if file is not None:
                os.ftruncate(file, os.pwrite(file, self._holder.as_text(), 0))

    @contextmanager
    def _ours(self, flags: int = os.O_RDONLY) -> Iterator[int | None]:
        """The lock file, open; None once it is lost. What is done to it cannot hit one that replaced it meanwhile."""
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
            # A file system that does not answer for a moment is no loss.
            with self._file_in_use, suppress(OSError), self._ours() as file:
                if file is not None:
                    os.utime(file)

    def _wait_for(self, other: _Seen) -> _Seen | None:
        """Takes the lock once its holder, who cannot be asked, has been silent too long; or else tells who lives."""
        last: _Seen | None = other
        if other.holder is None or other.holder.lives() is not None:
            return other
        self._notify(
            f"{self.path}: held by {other.describe()}, silent for {other.silent_s:.0f} s; looking until it gives a "
            f"sign of life or has been silent for {self._stale_after_s:.0f} s"
        )
        while last is not None and last.token == other.token and last.silent_s >= other.silent_s:
            other = last
            time.sleep(min(1.0, self._heartbeat_s / 2))
            last = self._take(self.path)
        return last

    def _take(self, path: Path) -> _Seen | None:
        """Makes the lock at ``path`` ours; or else tells who holds it, or is about to."""
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
                # Only now, with the right to replace it, does what is seen stay so.
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
        if lives is None and seen.silent_s > self._stale_after_s:
            return f"gave no sign of life for {seen.silent_s:.0f} s"
        return "does not live any more" if lives is False else None

    def _look(self, path: Path) -> _Seen | None:
        """What is at ``path``; None where nothing is."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            # Before the lock's time is read: a judge that sleeps in between must not find it older than it was.
            clock = self._file_system_clock()
            try:
                # Opened, not only asked for: over a network, that is what makes a machine look again.
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
        """What time a file gets that is touched now. This machine's clock may differ from that of others."""
        probe = self.path.with_name(f".{FILE}.clock.{self._holder.token}")
        try:
            with probe.open("wb") as file:
                os.utime(file.fileno())
                return os.fstat(file.fileno()).st_mtime
        finally:
            probe.unlink(missing_ok=True)


def _replacement_lock(path: Path, token: str) -> Path:
    """The lock on replacing or removing the lock at ``path`` as long as it is that one."""
    return path.with_name(f".{path.name.removeprefix('.')}.{token}")


def _create(path: Path, holder: Holder) -> bool:
    """Writes a lock that is not there yet; False where one is."""
    try:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    try:
        os.write(file, holder.as_text())
    except OSError:
        path.unlink()
        raise
    finally:
        os.close(file)
    with suppress(FileNotFoundError):
        # A maker that slept after the first line may find its empty file replaced.
        return holder.wrote(path.read_bytes())
    return False
