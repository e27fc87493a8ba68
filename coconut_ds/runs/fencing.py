"""The folder through which a launch writes to its run, so that a launch that has lost the run can change nothing there.

A launch that was suspended, or whose disk took minutes for one call, can lose its lock to another launch at any
instruction. Checking the lock before a write is therefore not enough: the process may be suspended between the check
and the write. So each launch has a *launch folder*, ``<run>/.launch.<number>``, and every change of the run is one
rename out of it or into it:

* files and checkpoints are written in the launch folder, and put in place by a rename;
* what is to be removed is renamed into the launch folder, and removed there.

The number is the *fencing token*: each launch takes a larger one than all before it. After a launch has taken the lock,
it makes its own folder, checks that it still holds the lock, and removes the folders with smaller numbers before it
reads the state of the run. From then on each rename of an earlier launch fails, because its source or its destination
does not exist; so does the creation of a file in the folder that was removed. What it still writes goes to files that
are open and have no name any more. The check of the lock before each change tells a launch why its writes fail.

A launch folder stays, empty, when its launch ends: it records the largest number so far.
"""

import ctypes
import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from coconut_ds.errors import CheckpointError, ConfigError
from coconut_ds.files import put_in_place, remove, sync
from coconut_ds.runs.lock import FILE, RunLock

LAUNCH = re.compile(r"\.launch\.(\d+)(\.gone\.[0-9a-f]+)?")
"""Name of a launch folder: its number, and an ending while a later launch removes it."""
PATIENCE_S, PAUSE_S = 30.0, 0.02
"""Seconds for which the removal of an earlier launch's folder is tried, and seconds between two tries."""
AT_WORKING_FOLDER, EXCHANGE = -100, 2
"""Linux's ``AT_FDCWD`` and ``RENAME_EXCHANGE``."""


class LostRunError(CheckpointError):
    """Another launch has taken over the run; this one must change nothing any more."""

    @classmethod
    def of(cls, folder: Path) -> "LostRunError":
        """The error with its message; ``folder``: of the run or of its attempt."""
        return cls(f"{folder}: another launch took the run over while this one gave no sign of life; this one stops")


class Fence:
    """The launch folder of this process. Only rank 0 makes one; other ranks write to paths that it gives them."""

    def __init__(self, run: Path, lock: RunLock | None = None, notify: Callable[[str], None] = print) -> None:
        """Makes the launch folder, and removes those of all earlier launches.

        Args:
            run: the folder that all attempts of the run share.
            lock: the lock of this folder, which this process holds; None: nothing else works on the run.
            notify: receives a warning if the content of an earlier launch's folder cannot be removed.

        Raises:
            LostRunError: another launch has taken over the run in the meantime.
            ConfigError: the folder of an earlier launch cannot be renamed.
            OSError: the launch folder cannot be made.
        """
        self.run, self._lock, self._names = run, lock, count()
        self.number = 1 + max(_numbers(run), default=0)
        while True:
            self.path = run / f".launch.{self.number}"
            try:
                self.path.mkdir()
                break
            except FileExistsError:
                self.number += 1
        try:
            # A launch that takes the lock after this check finds this folder, and takes a larger number.
            self.check()
        except LostRunError:
            # The other launch may have removed it.
            with suppress(OSError):
                self.path.rmdir()
            raise
        for path, number in _launches(run):
            if number < self.number:
                _remove_launch(path, notify)

    def find_lost(self) -> bool:
        """Reads the lock, and returns whether another launch has taken over the run."""
        return self._lock is not None and not self._lock.still_ours()

    def check(self) -> None:
        """Checks that this launch still holds the run.

        Raises:
            LostRunError: another launch has taken it over.
        """
        if self.find_lost():
            raise LostRunError.of(self.run)

    def part(self, name: str) -> Path:
        """A new path in the launch folder. ``name``: what the file or folder will be called in its final place."""
        return self.path / f"{next(self._names)}.{name}"

    def put(self, part: Path, target: Path) -> None:
        """Flushes a part to the disk and renames it to ``target``, which is replaced atomically where it exists.

        Args:
            part: a path of ``part``. A folder must have been flushed by the caller (``files.seal``).
            target: a file or folder of the run, on the same file system.

        Raises:
            LostRunError: another launch has taken over the run; ``target`` is unchanged.
            OSError: the part cannot be flushed or renamed; ``target`` is unchanged.
        """
        with self.explained():
            if not part.is_dir():
                sync(part)
                self.check()
                os.replace(part, target)
            else:
                self.check()
                _put_folder(part, target)
            sync(target.parent)

    def write(self, target: Path, text: str) -> None:
        """Replaces a file atomically: readers see the old content or all of the new one, which is on disk on return.

        Raises:
            LostRunError: another launch has taken over the run; the file is unchanged.
            OSError: the file cannot be written; it is unchanged.
        """
        part = self.part(target.name)
        try:
            with self.explained():
                part.write_text(text, encoding="utf-8")
            self.put(part, target)
        except OSError:
            part.unlink(missing_ok=True)
            raise

    def make_folder(self, target: Path) -> None:
        """Makes an empty folder of the run, unless it exists.

        Raises:
            LostRunError: another launch has taken over the run; nothing was made.
            OSError: it cannot be made.
        """
        if target.is_dir():
            return
        part = self.part(target.name)
        with self.explained():
            part.mkdir()
        self.put(part, target)

    def discard(self, path: Path) -> None:
        """Removes a file or folder of the run; nothing can mistake a half-removed folder for a complete one.

        Raises:
            LostRunError: another launch has taken over the run; nothing was removed.
            OSError: it cannot be removed.
        """
        with self.explained():
            self.check()
            gone = self.part(path.name)
            path.rename(gone)
            remove(gone)

    def close(self) -> None:
        """Empties the launch folder; removes it too if the run consists of nothing else. Call it before the lock is
        released. Does nothing if another launch has taken over the run."""
        if self.find_lost():
            return
        with suppress(OSError):
            for path in self.path.iterdir():
                remove(path)
            if {path.name for path in self.run.iterdir()} <= {self.path.name, FILE}:
                self.path.rmdir()

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Within it, an error of the disk becomes ``LostRunError`` if another launch has taken over the run: then the
        launch folder no longer exists."""
        try:
            yield
        except OSError as error:
            try:
                self.check()
            except LostRunError as lost:
                raise lost from error
            raise


@contextmanager
def pinned(folder: Path) -> Iterator[Path]:
    """A path to an existing folder under which nothing can be created once the folder has been removed.

    Libraries that write models create missing folders, and would make the folder of a launch that has lost its run
    again. Linux has such paths, which child processes may use too; elsewhere this is the folder itself.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        path = Path(f"/proc/{os.getpid()}/fd/{descriptor}")
        yield path if path.is_dir() else folder
    finally:
        os.close(descriptor)


def left_over_parts(run: Path) -> list[Path]:
    """What killed launches have left in their launch folders. Call it only if no other process works on the run."""
    return [part for path, _ in _launches(run) for part in sorted(path.iterdir())]


def _numbers(run: Path) -> list[int]:
    return [number for _, number in _launches(run)]


def _launches(run: Path) -> list[tuple[Path, int]]:
    """The launch folders of a run, with their numbers."""
    return [(path, int(found[1])) for path in run.iterdir() if (found := LAUNCH.fullmatch(path.name))]


def _remove_launch(path: Path, notify: Callable[[str], None]) -> None:
    """Renames the folder of an earlier launch, which may still be writing there, and removes it.

    The rename alone keeps that launch from changing the run; what cannot be removed is left to the next launch.

    Raises:
        ConfigError: it cannot be renamed.
    """
    gone = path
    if ".gone." not in path.name:
        gone = path.with_name(f"{path.name}.gone.{secrets.token_hex(4)}")
        try:
            path.rename(gone)
        except FileNotFoundError:
            # A launch with a number in between has removed it.
            return
        except OSError as error:
            raise ConfigError(
                f"{path}: is left by an earlier launch of this run and cannot be renamed ({error}); remove this folder "
                "and start the same command again"
            ) from error
    deadline = time.monotonic() + PATIENCE_S
    # A call that the earlier launch had begun before the rename may still create a file.
    while True:
        try:
            shutil.rmtree(gone)
            return
        except FileNotFoundError:
            if not gone.exists():
                return
        except OSError as error:
            if time.monotonic() > deadline:
                notify(
                    f"warning: {gone}: is left by an earlier launch of this run and cannot be removed ({error}); the "
                    "next launch tries again"
                )
                return
        time.sleep(PAUSE_S)


def _put_folder(part: Path, target: Path) -> None:
    if not target.exists():
        part.rename(target)
    elif _exchange(part, target):
        # What was in place before is removed with the launch folder if this fails.
        shutil.rmtree(part, ignore_errors=True)
    else:
        put_in_place(part, target)


def _exchange(left: Path, right: Path) -> bool:
    """Exchanges two paths atomically; returns False, with nothing changed, where the system cannot do that.

    Raises:
        OSError: the exchange failed.
    """
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return False
    if function(AT_WORKING_FOLDER, os.fsencode(left), AT_WORKING_FOLDER, os.fsencode(right), EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(left))
