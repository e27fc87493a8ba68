"""Memory of the host: how much there is for processes of this container, and how much of it is still free."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from coconut_ds.errors import CoconutError

PROC = Path("/proc")
"""Where Linux reports on processes and memory."""
FILES = {
    "cgroup2": ("memory.max", "memory.current", ("inactive_file", "active_file")),
    "cgroup": (
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
}
"""By type of file system (versions 2 and 1 of cgroups): the files with the memory limit of a group of processes and
with what the group uses, and the lines of ``memory.stat`` with its page cache."""


class HostMemoryError(CoconutError):
    """The system does not report its memory."""


def usable_bytes(proc: Path = PROC) -> int:
    """Memory that this process may use, in bytes: the machine's, or the limit of its container if that is smaller.

    Args:
        proc: where the kernel reports on processes.

    Raises:
        HostMemoryError: the system does not report its memory.
    """
    return min([_reported(proc, "MemTotal"), *(limit for limit, _ in _groups(proc))])


def available_bytes(proc: Path = PROC) -> int:
    """Memory that processes may still take, in bytes, on this machine or, if that is less, in this container.

    Args:
        proc: where the kernel reports on processes.

    Raises:
        HostMemoryError: the system does not report its memory.
    """
    return min([_reported(proc, "MemAvailable"), *(limit - used for limit, used in _groups(proc))])


def _reported(proc: Path, name: str) -> int:
    try:
        lines = (proc / "meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
    except (OSError, StopIteration, ValueError, IndexError) as error:
        raise HostMemoryError(f"{proc}/meminfo does not report this machine's memory ({error!r})") from error


def _groups(proc: Path) -> Iterator[tuple[int, int]]:
    """Memory limit and use of all cgroups that this process belongs to, its own and those around it, where there is a
    limit."""
    try:
        groups = (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines()
        mounts = (proc / "self" / "mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    # Lines are `ID:CONTROLLERS:PATH`; in version 2 there are no controllers.
    paths = {controller: Path(path) for _, names, path in _split(groups) for controller in names.split(",")}
    for line in mounts:
        # `… ROOT MOUNT_POINT OPTIONS … - TYPE SOURCE OPTIONS`, see proc(5).
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        own = paths.get("" if kind[0] == "cgroup2" else "memory")
        in_use = kind[0] == "cgroup2" or (kind[0] == "cgroup" and "memory" in kind[-1].split(","))
        if in_use and own is not None and len(fields) > 4:
            yield from _around(Path(_unescaped(fields[4])), Path(_unescaped(fields[3])), own, FILES[kind[0]])


def _split(lines: list[str]) -> Iterator[tuple[str, str, str]]:
    for line in lines:
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        yield number, names, path


def _around(mount: Path, root: Path, own: Path, names: tuple[str, str, tuple[str, str]]) -> Iterator[tuple[int, int]]:
    """Limit and use of a group and of those around it.

    Args:
        mount: where the groups are mounted.
        root: the group that is mounted there; a container sees only the groups inside its own.
        own: the group.
        names: names of the files with the limit and the use, and of the lines with the page cache.
    """
    inside = own.relative_to(root) if own.is_relative_to(root) else Path()
    folder = mount / inside
    for each in (folder, *folder.parents):
        if each.is_relative_to(mount):
            # The outermost group has no such files, and `max` means that there is no limit.
            with suppress(OSError, ValueError):
                limit, used = (int((each / name).read_text(encoding="ascii")) for name in names[:2])
                # The use includes the page cache, which the kernel gives up when processes need the memory.
                yield limit, used - min(used, _page_cache(each, names[2]))


def _page_cache(group: Path, names: tuple[str, str]) -> int:
    """Bytes of files that the kernel keeps in memory for a group of processes; 0 if it does not say."""
    try:
        lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
        return sum(int(line.split()[1]) for line in lines if line.partition(" ")[0] in names)
    except (OSError, ValueError, IndexError):
        return 0


def _unescaped(path: str) -> str:
    r"""A path of ``mountinfo``, where white space and backslashes are written as ``\040``."""
    return path.encode("latin-1", "backslashreplace").decode("unicode_escape") if "\\" in path else path
