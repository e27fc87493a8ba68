"""Open files of the process: how many there may be, and how many of them connections may take."""

import os
import resource

from coconut_ds.errors import ConfigError

MOST = 65_536
"""Open files that the process allows itself, if the system lets it."""
MOST_CONNECTIONS = 4096
"""Connections at the same time, unless ``--max-connections`` says otherwise."""
RESERVED = 256
"""Open files that connections never take: those of models, logs and the app, and connections that are being refused."""
FEWEST = 128
NUM_SPARE = 4


def raise_limit() -> int:
    """Raises the process's limit of open files as far as it may go, and returns it.

    Raises:
        ConfigError: it is too low to serve anything.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft == resource.RLIM_INFINITY or soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = most
    if soft < FEWEST:
        raise ConfigError(
            f"the system allows this process {soft} open files; expected at least {FEWEST} (ulimit -n {FEWEST * 8})"
        )
    return soft


def max_connections(descriptors: int, asked: int | None) -> int:
    """Connections that may be open at the same time.

    Args:
        descriptors: the process's limit of open files.
        asked: the value of ``--max-connections``; None: as many as the limit leaves, up to ``MOST_CONNECTIONS``.

    Raises:
        ConfigError: more connections are asked for than there can be.
    """
    room = descriptors - min(RESERVED, descriptors // 2)
    if asked is not None and not 1 <= asked <= room:
        raise ConfigError(
            f"--max-connections {asked}: expected 1 to {room}, because the system allows this process {descriptors} "
            f"open files, of which the server keeps {descriptors - room} for other things (ulimit -n)"
        )
    return min(room, MOST_CONNECTIONS) if asked is None else asked


class SpareDescriptors:
    """Open files that can be given up when there are no others, so that a connection can be accepted and closed."""

    def __init__(self) -> None:
        self._spare: list[int] = []
        self.refill()

    def refill(self) -> None:
        """Opens those that were given up, as far as possible."""
        try:
            while len(self._spare) < NUM_SPARE:
                self._spare.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            # There are still none; the next call tries again.
            return

    def give_up(self) -> bool:
        """Closes one, and says whether there was one."""
        if not self._spare:
            return False
        os.close(self._spare.pop())
        return True

    def close(self) -> None:
        """Closes all."""
        while self.give_up():
            pass
