"""Temporary folders, which do not stay behind when a process is killed."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coconut_ds.files import remove

TEMPORARY = ".part"
"""How the names of temporary folders end."""


@contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A new hidden folder in ``parent``, which is removed in the end; so are those that killed processes left there.

    The folder is locked (``flock``) while it is in use: the system unlocks it when its process ends, however that ends.
    """
    for path in parent.glob(f".*{TEMPORARY}"):
        if path.is_dir() and (lock := _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)) is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)
    made, lock = _locked_folder(parent)
    try:
        yield made
    finally:
        remove(made)
        if lock is not None:
            os.close(lock)


def _locked_folder(parent: Path) -> tuple[Path, int | None]:
    """A new folder and its lock; None where the file system has no locks, and no process removes another's folder."""
    while True:
        made = Path(tempfile.mkdtemp(prefix=".", suffix=TEMPORARY, dir=parent))
        lock = _lock(made, fcntl.LOCK_EX)
        # Another process may have removed the folder before it was locked.
        if made.is_dir():
            return made, lock
        if lock is not None:
            os.close(lock)


def _lock(folder: Path, how: int) -> int | None:
    """Locks a folder; the descriptor that holds the lock until it is closed. None if it cannot be locked."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, how)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
