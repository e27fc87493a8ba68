"""Identifies the code of a run: the commit of its checkout and the changes since, or the installed version.

Git is only asked which files belong to the package and which of them the commit contains; this module reads the
contents from the disk. The output of ``git diff`` would depend on user settings (external diff, textconv, prefixes,
line endings) and on the version of git.
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
"""Modes of git tree entries that are not regular files."""
KEPT_VARIABLES = ("GIT_CONFIG_", "GIT_CEILING_", "GIT_DISCOVERY_")
"""Prefixes of git's environment variables that are passed on: configuration, such as safe directories, and how far up
to look for a checkout. Other variables of git may point to another repository."""

_Tree = dict[bytes, tuple[bytes, str]]
"""Maps a path relative to the package to its mode and git's hash of its content."""


def code_identity(package: Path = PACKAGE) -> dict[str, str]:
    """What identifies this code, independent of where the files are located. Never raises.

    In a checkout that tracks the package: ``commit``, and ``difference``, a hash of the package's files that differ
    from the commit (empty if none does). Otherwise, or if git fails: the installed ``version``, and a hash of the
    ``source``.
    """
    commit = (_git(package, "rev-parse", "--verify", "--quiet", "HEAD^{commit}") or b"").decode().strip()
    tree = _tree(package, commit) if commit else {}
    names = _names_there(package) if b"__init__.py" in tree else None
    if names is not None:
        return {"commit": commit, "difference": _difference(package, tree, names)}
    source = sorted(os.fsencode(path.relative_to(package)) for path in package.rglob("*.py"))
    return {"version": _installed_version(), "source": _hash(package, filter(_may_count, source))}


def source_hashes(package: Path = PACKAGE) -> dict[str, str]:
    """A hash of the content of each Python file of the package, by its path in it. Needs no git."""
    names = sorted(os.fsencode(path.relative_to(package)) for path in package.rglob("*.py"))
    return {os.fsdecode(name): _hash(package, [name]) for name in filter(_may_count, names)}


def _git(package: Path, *arguments: str) -> bytes | None:
    """Standard output of git, run in the package's folder; None if it fails."""
    kept = {name: value for name, value in os.environ.items() if _is_kept(name)}
    # core.fsmonitor would start a program that the user has configured.
    command = ["git", "-c", "core.fsmonitor=false", *arguments]
    try:
        done = subprocess.run(command, cwd=package, env=kept, stdin=subprocess.DEVNULL, capture_output=True)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def _is_kept(variable: str) -> bool:
    return not variable.startswith("GIT_") or variable.startswith(KEPT_VARIABLES)


def _tree(package: Path, commit: str) -> _Tree:
    """The package's files in the commit, without submodules."""
    found = {}
    for entry in (_git(package, "ls-tree", "-r", "-z", commit) or b"").split(b"\0"):
        facts, _, name = entry.partition(b"\t")
        if name:
            mode, _, digest = facts.split(b" ")
            if mode != SUBMODULE:
                found[name] = (mode, digest.decode())
    return found


def _names_there(package: Path) -> set[bytes] | None:
    """Files that git tracks, and untracked files that no ``.gitignore`` of the checkout ignores. Ignore rules from the
    user's own git settings do not apply, since another user's would differ. None if git fails."""
    tracked = _git(package, "ls-files", "-z", "--cached")
    new = _git(package, "ls-files", "-z", "--others", "--exclude-per-directory=.gitignore")
    if tracked is None or new is None:
        return None
    return {*tracked.split(b"\0"), *filter(_may_count, new.split(b"\0"))} - {b""}


def _may_count(name: bytes) -> bool:
    """Whether an untracked file counts. Hidden files and those ending in ``~`` belong to editors, compiled files
    contain timestamps, and folders are other repositories."""
    return not name.endswith((b"/", b"~")) and not any(
        part.startswith(b".") or part == b"__pycache__" for part in name.split(b"/")
    )


def _difference(package: Path, tree: _Tree, names: Iterable[bytes]) -> str:
    """A hash of the files that differ from the commit; empty if none does."""
    different = sorted(name for name in {*tree, *names} if not _is_as_committed(package, name, tree.get(name)))
    return _hash(package, different) if different else ""


def _is_as_committed(package: Path, name: bytes, committed: tuple[bytes, str] | None) -> bool:
    path = os.fsencode(package) + b"/" + name
    if committed is None:
        # A new submodule, for example, or a file that exists only in the index.
        return not os.path.isfile(path)
    mode, digest = committed
    if mode == LINK:
        return os.path.islink(path) and _blob(os.readlink(path), digest) == digest
    content = _content(path)
    # Line endings depend on checkout settings and mean nothing to Python.
    return content is not None and (_blob(content, digest) == digest or _blob(_plain_ends(content), digest) == digest)


def _blob(content: bytes, like: str) -> str:
    """Git's hash of a file with this content: SHA-1 or SHA-256, by the length of ``like``."""
    kind = "sha1" if len(like) == 40 else "sha256"
    return hashlib.new(kind, b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _hash(package: Path, names: Iterable[bytes]) -> str:
    """A hash (16 hexadecimal digits) of the names and contents of files; missing files count too."""
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
