"""Where the project's own files lie, and how files and folders are written: whole or not at all."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parent
SEAL = "manifest.json"
"""The file of a sealed folder that tells what belongs to it."""


def project_folder(name: str) -> Path:
    """The folder ``config`` or ``ds_configs``: beside the package in a checkout, inside it once installed."""
    packed = _PACKAGE / "_files" / name
    return packed if packed.is_dir() else _PACKAGE.parent / name


def train_script() -> Path:
    """The file that launchers start."""
    return _PACKAGE / "train.py"


def write_whole(path: Path, text: str) -> None:
    """Writes a file that is there whole, and on the disk, when this returns; until then the old one stands."""
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


def seal(folder: Path, **facts: Any) -> None:
    """Ends a folder: everything in it goes to the disk, and its manifest names each file with size and sha256.

    To be called before the folder gets its name, so that the rename is what makes it count.
    """
    files = {str(path.relative_to(folder)): _fingerprint(path) for path in _files(folder)}
    text = json.dumps({**facts, "files": files}, indent=2) + "\n"
    (folder / SEAL).write_text(text, encoding="utf-8")
    for path in (*_files(folder), folder / SEAL, *(path for path in folder.rglob("*") if path.is_dir()), folder):
        sync(path)


def seal_of(folder: Path) -> dict[str, Any] | None:
    """The manifest of a sealed folder; None where there is none that can be read."""
    try:
        values = json.loads((folder / SEAL).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    files = values.get("files") if isinstance(values, dict) else None
    if not isinstance(files, dict) or not all(isinstance(known, dict) and "bytes" in known for known in files.values()):
        return None
    assert isinstance(values, dict)
    return values


def damage(folder: Path, hashes: bool = False, without: str | None = None) -> list[str]:
    """What is wrong with a sealed folder: files that are missing, of another size or, asked for, of other content.

    Args:
        folder: the sealed folder.
        hashes: read every file and compare its content too.
        without: a folder inside that is not looked at.
    """
    values = seal_of(folder)
    if values is None:
        return [f"{SEAL} is missing or broken"]
    found = []
    for name, known in values["files"].items():
        if without is not None and Path(name).parts[0] == without:
            continue
        try:
            fault = _fault(folder / name, known, hashes)
        except OSError as error:
            fault = f"cannot be read ({error.strerror})"
        if fault:
            found.append(f"{name} {fault}")
    return found


def _fault(path: Path, known: dict[str, Any], hashes: bool) -> str | None:
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != known["bytes"]:
        return f"has {path.stat().st_size} bytes, expected {known['bytes']}"
    if hashes and _fingerprint(path) != known:
        return "has other content than when it was written"
    return None


def is_complete(folder: Path) -> bool:
    """Whether a sealed folder has all its files in full length: the one meaning of a checkpoint that is there."""
    return not damage(folder)


def put_in_place(new: Path, folder: Path) -> None:
    """Gives ``new`` the name ``folder``; whatever stood there is removed, and until the end one of them is whole."""
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
    # A left-over of the old one does no harm to the new.
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Removes a folder, which loses its name first: no half of it is ever taken for the whole."""
    gone = folder.with_name(f".{folder.name}.gone.{os.getpid()}")
    folder.rename(gone)
    shutil.rmtree(gone)


def remove(path: Path) -> None:
    """Removes a file or a folder; nothing where nothing is."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Has the system write a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / SEAL)


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
