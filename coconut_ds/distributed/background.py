"""Runs one call at a time in a second thread of each rank, whose exchanges do not disturb those of the first one."""

import os
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from coconut_ds.distributed.host_memory import HostMemoryError, available_bytes
from coconut_ds.distributed.ranks import Ranks

CONNECT = timedelta(minutes=2)
"""How long the ranks may take to connect their second threads."""
LONGEST = timedelta(hours=1)
"""How long the second threads of other ranks may wait for the slowest one."""
SHARE = 0.5
"""Share of the available memory that a call may be given to hold."""


class Background:
    """The second thread of a rank. All ranks must make the same calls in the same order."""

    def __init__(self, ranks: Ranks, group: Any = None) -> None:
        """Starts no thread yet.

        Args:
            ranks: this process among the ranks.
            group: process group in which the second threads exchange values; None for a single rank.
        """
        self._ranks, self._group = ranks, group
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in order of rank. For the second threads only."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * self._ranks.size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def start(self, call: Callable[[], object]) -> None:
        """Begins a call; the previous one must have been waited for."""
        assert self._thread is None
        self._thread = threading.Thread(target=self._run, args=(call,), name="background")
        self._thread.start()

    @property
    def is_idle(self) -> bool:
        """Whether there is no call that was not waited for."""
        return self._thread is None

    @property
    def failed(self) -> bool:
        """Whether the call has ended with an error, which ``wait`` will return."""
        return self._error is not None

    def wait(self) -> BaseException | None:
        """Waits for the end of the call, if there is one; returns its error."""
        if self._thread is not None:
            self._thread.join()
        self._thread, error, self._error = None, self._error, None
        return error

    def has_room(self, num_bytes: int) -> bool:
        """Whether every rank of this machine may hold that many bytes more."""
        neighbours = _ranks_of_machine() or self._ranks.size
        try:
            return num_bytes * neighbours <= SHARE * available_bytes()
        except HostMemoryError:
            # Where the system does not say (not on Linux), a copy of what is in memory already is assumed to fit.
            return True

    def _run(self, call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:
            self._error = error


def open_background(ranks: Ranks, notify: Callable[[str], None]) -> Background | None:
    """The second thread of each rank; None, after a line for the log, if its exchanges may not work. All ranks call it.

    The second threads exchange values by gloo. A cluster that trains with NCCL may not be configured for gloo between
    its machines, so ranks on several machines use the second threads only if they train with gloo too.

    Args:
        ranks: this process among the ranks.
        notify: receives lines for the log.
    """
    if ranks.size == 1:
        return Background(ranks)
    backend = dist.get_backend()
    if not ranks.every(backend == "gloo" or _ranks_of_machine() == ranks.size):
        notify(f"run.async_save: with {backend} on several machines, training waits while checkpoints are written")
        return None
    group, error = None, ""
    try:
        # Two threads must not use one group at the same time. gloo exchanges Python objects without a GPU.
        group = dist.new_group(backend="gloo", timeout=CONNECT)
        dist.distributed_c10d._set_pg_timeout(LONGEST, group)
    except (RuntimeError, ValueError) as caught:
        error = f" ({caught})"
    if ranks.every(not error):
        return Background(ranks, group)
    notify(f"run.async_save: gloo cannot connect the ranks{error}, so training waits while checkpoints are written")
    return None


def _ranks_of_machine() -> int | None:
    """Number of ranks on this machine; None if the launcher does not say."""
    names = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")
    return next((int(os.environ[name]) for name in names if name in os.environ), None)
