"""Creates a lock file with its content, so that no other process ever sees it empty or half-written."""

import os
from contextlib import suppress
from pathlib import Path


def create_with(path: Path, text: bytes, temporary: Path) -> bool:
    """Creates the file at ``path``; returns False if there is one already.

    The content is written to ``temporary``, which then gets a second name. On file systems without hard links, the file
    is created empty and then written.

    Raises:
        OSError: the content cannot be written; there is no new file then.
    """
    try:
        temporary.write_bytes(text)
        return _link(temporary, path, text)
    finally:
        temporary.unlink(missing_ok=True)


def _link(temporary: Path, path: Path, text: bytes) -> bool:
    try:
        os.link(temporary, path)
    except FileExistsError:
        # A network file system may have done it, lost its answer and asked again.
        with suppress(OSError):
            return path.samefile(temporary)
        return False
    except FileNotFoundError:
        raise
    except OSError:
        return _create(path, text)
    return True


def _create(path: Path, text: bytes) -> bool:
    try:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    try:
        os.write(file, text)
    except OSError:
        path.unlink()
        raise
    finally:
        os.close(file)
    return True
