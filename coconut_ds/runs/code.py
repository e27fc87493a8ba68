"""Which code a run has: the commit of its checkout and what differs from it, or the installed version.

Git is asked only which files belong to the package and what the commit has of them; contents are read from the disk
here. A ``git diff`` would depend on settings (external diff, textconv, prefixes, line ends) and on git's version.
"""

import hashlib
import os
import subprocess
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
DISTRIBUTION = "coconut-ds"
LINK, SUBMODULE = b"120000", b"160000"
"""Modes of entries of a git tree that are no plain files."""
KEPT_VARIABLES = ("GIT_CONFIG_", "GIT_CEILING_", "GIT_DISCOVERY_")
"""Of git's environment: safe folders and how far to look for a checkout. Others may point to another repository."""

_Tree = dict[bytes, tuple[bytes, str]]
"""A name relative to the package to its mode and git's hash of its content."""


def code_identity(package: Path = PACKAGE) -> dict[str, str]:
    """What tells this code from another; the same wherever the files lie. Raises nothing.

    In a checkout that tracks the package: its ``commit``, and a hash of the package's ``difference`` from it, empty
    where there is none. Elsewhere, or where git does not answer: the installed ``version``, a hash of the ``source``.
    """
    commit = (_git(package, "rev-parse", "--verify", "--quiet", "HEAD^{commit}") or b"").decode().strip()
    tree = _tree(package, commit) if commit else {}
    names = _names_there(package) if b"__init__.py" in tree else None
    if names is not None:
        return {"commit": commit, "difference": _difference(package, tree, names)}
    source = sorted(os.fsencode(path.relative_to(package)) for path in package.rglob("*.py"))
    return {"version": _installed_version(), "source": _hash(package, filter(_may_count, source))}


def _git(package: Path, *arguments: str) -> bytes | None:
    """What git prints, asked in the folder of the package; None where it fails."""
    kept = {name: value for name, value in os.environ.items() if _is_kept(name)}
    # A file system monitor is a program of the user's choice.
    command = ["git", "-c", "core.fsmonitor=false", *arguments]
    try:
        done = subprocess.run(command, cwd=package, env=kept, stdin=subprocess.DEVNULL, capture_output=True)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def _is_kept(variable: str) -> bool:
    return not variable.startswith("GIT_") or variable.startswith(KEPT_VARIABLES)


def _tree(package: Path, commit: str) -> _Tree:
    """What the commit has of the package; submodules are left out."""
    found = {}
    for entry in (_git(package, "ls-tree", "-r", "-z", commit) or b"").split(b"\0"):
        facts, _, name = entry.partition(b"\t")
        if name:
            mode, _, digest = facts.split(b" ")
            if mode != SUBMODULE:
                found[name] = (mode, digest.decode())
    return found


def _names_there(package: Path) -> set[bytes] | None:
    """Files that git tracks, and new ones unless a ``.gitignore`` names them. What a user's settings ignore counts."""
    tracked = _git(package, "ls-files", "-z", "--cached")
    new = _git(package, "ls-files", "-z", "--others", "--exclude-per-directory=.gitignore")
    if tracked is None or new is None:
        return None
    return {*tracked.split(b"\0"), *filter(_may_count, new.split(b"\0"))} - {b""}


def _may_count(name: bytes) -> bool:
    """Hidden files and copies are editors', compiled ones hold times, and folders are other repositories."""
    return not name.endswith((b"/", b"~")) and not any(
        part.startswith(b".") or part == b"__pycache__" for part in name.split(b"/")
    )


def _difference(package: Path, tree: _Tree, names: Iterable[bytes]) -> str:
    """A hash of the files that are not as in the commit; empty where all are."""
    different = sorted(name for name in {*tree, *names} if not _is_as_committed(package, name, tree.get(name)))
    return _hash(package, different) if different else ""


def _is_as_committed(package: Path, name: bytes, committed: tuple[bytes, str] | None) -> bool:
    path = os.fsencode(package) + b"/" + name
    if committed is None:
        # Such as a submodule that is new, or a file that is only known to the index.
        return not os.path.isfile(path)
    mode, digest = committed
    if mode == LINK:
        return os.path.islink(path) and _blob(os.readlink(path), digest) == digest
    content = _content(path)
    # Line ends are what a checkout made of them, and mean nothing to Python.
    return content is not None and digest in (_blob(content, digest), _blob(_plain_ends(content), digest))


def _blob(content: bytes, like: str) -> str:
    """Git's hash of a file, of the kind that ``like`` is."""
    kind = "sha1" if len(like) == 40 else "sha256"
    return hashlib.new(kind, b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _hash(package: Path, names: Iterable[bytes]) -> str:
    """Sixteen digits that stand for the names and contents of files, whether they are there or not."""
    digest = hashlib.blake2b(digest_size=8)
    for name in names:
        content = _content(os.fsencode(package) + b"/" + name)
        inner = b"gone" if content is None else hashlib.blake2b(_plain_ends(content)).digest()
        digest.update(b"%d:%s%d:%s" % (len(name), name, len(inner), inner))
    return digest.hexdigest()


def _content(path: bytes) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return None


def _plain_ends(content: bytes) -> bytes:
    return content.replace(b"\r\n", b"\n")


def _installed_version() -> str:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "unknown"
