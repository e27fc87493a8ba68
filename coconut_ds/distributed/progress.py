"""What a process is doing and how far it has come: written by the thread that trains, read by the watchdog."""

from collections.abc import Iterator
from contextlib import contextmanager


class Progress:
    """Counts steps. Cheap enough for each micro batch and each operation of the thinking engine."""

    def __init__(self) -> None:
        self.steps = 0
        """Number of steps so far; any step shows that the process does not wait for ever."""
        self.doing = "starting"
        """What the process is doing."""
        self.update: int | None = None
        """The update that it works on, counted from 1; None before the first one."""
        self.is_host_work = True
        """Whether the host itself works (loading, tokenizing, saving): then its use of the processor, and what it
        reads and writes, count as progress too."""
        self.is_excused = False
        """Whether it waits for something that may take any time, such as another program."""

    def step(self) -> None:
        """Notes that the process has come further."""
        self.steps += 1

    def begin(self) -> None:
        """Notes that the process starts or continues a run."""
        self.doing, self.update, self.is_host_work = "starting", None, True
        self.steps += 1

    def begin_update(self, number: int) -> None:
        """Notes that the process now works on an update."""
        # During the first one, the host may compile kernels.
        self.update, self.doing, self.is_host_work = number, "training", self.update is None
        self.steps += 1

    @contextmanager
    def during(self, doing: str, host_work: bool = False, excused: bool = False) -> Iterator[None]:
        """Within this context, the process is doing something else; both ends are steps."""
        before = self.doing, self.is_host_work, self.is_excused
        self.doing, self.is_host_work, self.is_excused = doing, host_work, excused
        self.steps += 1
        try:
            yield
        finally:
            self.doing, self.is_host_work, self.is_excused = before
            self.steps += 1
