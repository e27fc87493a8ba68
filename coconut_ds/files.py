"""Where the project's own files are, and how files and folders are written: completely or not at all.

A *sealed* folder has a manifest with size and SHA-256 of all other files except ``README.md``. Checkpoints are sealed.
"""

import errno
import hashlib
import json
import logging
import os
import shlex
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from coconut_ds.strict_json import read_json

log = logging.getLogger(__name__)
_PACKAGE = Path(__file__).resolve().parent
SEAL, README = "manifest.json", "README.md"
"""The manifest of a sealed folder; and a text about the folder, which people edit and evaluations extend. No number
depends on this text, so the manifest leaves it out, and changing it is no damage."""
MAX_TEXT = 8192
"""Largest size, in bytes, of a JSON file whose text the manifest records."""
UNSUPPORTED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""Error numbers of fsync on a folder where a file system cannot flush folders, as some network file systems."""
_cannot_sync: set[int] = set()
"""Devices whose file system cannot flush folders, of which the user has been told."""


def project_folder(name: str) -> Path:
    """A folder such as ``config``: next to the package in a checkout, inside the package once installed."""
    packed = _PACKAGE / "_files" / name
    return packed if packed.is_dir() else _PACKAGE.parent / name


def released_checkpoints() -> Path:
    """The folder of the checkpoints that come with this project; it need not exist."""
    return project_folder("examples") / "checkpoints"


def train_script() -> Path:
    """The script that launchers start."""
    return _PACKAGE / "train.py"


def evaluate_script() -> Path:
    """The script that launchers start to evaluate."""
    return _PACKAGE / "evaluate.py"


def probe_script() -> Path:
    """The script that analyses the thoughts of a checkpoint."""
    return _PACKAGE / "probe.py"


def shell_word(path: str | Path) -> str:
    """A path as one word of a shell command, in quotes where it needs them. Programs print paths like this, so that a
    user can paste them into the next command."""
    text = str(path)
    # On a command line of this project these would not be a path: an option, no value, or a text within quotes.
    return shlex.quote(f"./{text}" if text[:1] in ("-", "'", '"') or text.lower() == "null" else text)


def write_whole(path: Path, text: str) -> None:
    """Replaces a file atomically: readers see the old content or all of the new one, which is on disk on return."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How every Git LFS pointer begins: a small text file that takes the place of a large file until that is downloaded."""


def not_downloaded(path: Path) -> str | None:
    """Says what a file contains in place of its real content, and what to do; None if it is not such a file.

    A clone without Git LFS has pointers instead of large files; a failed download may leave a web page.
    """
    try:
        with path.open("rb") as file:
            start = file.read(256).lstrip().lower()
    except OSError:
        return None
    if start.startswith(LFS_POINTER):
        return (
            f"is a Git LFS pointer ({path.stat().st_size} bytes of text) instead of the file itself; run `git lfs "
            "pull` in the repository that it was cloned from, or download the file"
        )
    if start.startswith((b"<!doctype html", b"<html")):
        return "is a web page instead of the file itself, probably from a failed download; download the file again"
    return None


def seal(folder: Path, **facts: Any) -> None:
    """Writes the manifest of a folder, and syncs all of it to disk.

    The manifest has ``facts``, size and SHA-256 of each file, and the text of small JSON files, to show later edits.

    Call it before the folder receives its final name: the rename then makes a complete folder appear at once.
    """
    files = fingerprints(folder)
    texts = {p.name: text for p in _files(folder) if p.parent == folder and (text := text_of(p)) is not None}
    text = json.dumps({**facts, "files": files, "texts": texts}, indent=2) + "\n"
    (folder / SEAL).write_text(text, encoding="utf-8")
    for path in (*(path for path in folder.rglob("*") if path.is_file() or path.is_dir()), folder):
        sync(path)


def seal_of(folder: Path) -> dict[str, Any] | None:
    """The manifest of a sealed folder; None if it is missing or invalid."""
    try:
        values = read_json(folder / SEAL)
    except (OSError, ValueError):
        return None
    files = values.get("files") if isinstance(values, dict) else None
    if not isinstance(files, dict) or not all(isinstance(known, dict) and "bytes" in known for known in files.values()):
        return None
    assert isinstance(values, dict)
    return values


def damage(folder: Path, hashes: bool = False, without: str | None = None, largest: int | None = None) -> list[str]:
    """Describes each file of a sealed folder that is not as it was when the folder was sealed; empty if all are.

    Args:
        folder: the sealed folder.
        hashes: also read every file and compare its SHA-256; otherwise only existence and size are checked.
        without: a top-level subfolder to skip.
        largest: with ``hashes``, size in bytes of the largest file to read; None: files of any size are read.
    """
    values = seal_of(folder)
    if values is None:
        return [f"{SEAL} is missing or broken"]
    files = {name: known for name, known in values["files"].items() if Path(name).parts[0] != without}
    return faults_of(folder, files, hashes, largest)


def fingerprints(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of each file of a folder, by its path there; ``SEAL`` and ``README`` are left out."""
    return {str(path.relative_to(folder)): fingerprint(path) for path in _files(folder)}


def faults_of(
    folder: Path, files: Mapping[str, dict[str, Any]], hashes: bool = True, largest: int | None = None
) -> list[str]:
    """Describes each file of a folder that is not as its fingerprint says; see ``damage``."""
    found = [
        (name, _fault(folder / name, known, hashes and (largest is None or known["bytes"] <= largest)))
        for name, known in files.items()
    ]
    return [f"{name} {fault}" for name, fault in found if fault]


def _fault(path: Path, known: dict[str, Any], hashes: bool) -> str | None:
    try:
        return _difference(path, known, hashes)
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _difference(path: Path, known: dict[str, Any], hashes: bool) -> str | None:
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != known["bytes"]:
        return f"has {path.stat().st_size} bytes, expected {known['bytes']}"
    if hashes and fingerprint(path) != known:
        return "has other content than when it was written"
    return None


def is_complete(folder: Path) -> bool:
    """Whether a sealed folder has all its files in full length. Only then does a checkpoint count as existing."""
    return not damage(folder)


def put_in_place(new: Path, folder: Path) -> None:
    """Renames ``new`` to ``folder``, replacing a folder of that name.

    The old folder is renamed first and removed last, so that at any moment at least one of the two is complete on disk.
    """
    old = folder.with_name(f".{folder.name}.old.{os.getpid()}")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            old.rename(folder)
            raise
    else:
        new.rename(folder)
    sync(folder.parent)
    # If parts of the old folder cannot be removed, they do not affect the new one.
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Renames a folder, then removes it: nothing can mistake a half-removed folder for a complete one."""
    gone = folder.with_name(f".{folder.name}.gone.{os.getpid()}")
    # A process with the same id may have been killed while it removed a folder of this name.
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone)


def remove(path: Path) -> None:
    """Removes a file or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flushes a file or folder to the disk (fsync).

    Where the file system cannot flush folders, it logs one warning and leaves the folder to the file system: files are
    flushed as everywhere, but a new name may be lost if the machine fails within the next seconds.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        facts = os.fstat(descriptor)
        if error.errno not in UNSUPPORTED or not stat.S_ISDIR(facts.st_mode):
            raise
        if facts.st_dev not in _cannot_sync:
            _cannot_sync.add(facts.st_dev)
            log.warning(
                "%s: this file system cannot flush folders to the disk (%s); files are flushed, but the newest one may "
                "be missing after a power failure",
                *(path, error.strerror),
            )
    finally:
        os.close(descriptor)


def _files(folder: Path) -> Iterator[Path]:
    left_out = (folder / SEAL, folder / README)
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path not in left_out)


def text_of(path: Path) -> str | None:
    """The text that a manifest records of a file; None if that is no JSON file, or too large."""
    if path.suffix != ".json" or path.stat().st_size > MAX_TEXT:
        return None
    return path.read_text(encoding="utf-8", errors="replace")


def fingerprint(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    with path.open("rb") as stream:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
