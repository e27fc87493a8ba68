"""What the ranks of a run exchange, over ``torch.distributed``. With a single rank nothing is sent."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from coconut_ds.distributed.progress import Progress
from coconut_ds.errors import CoconutError

Value = TypeVar("Value")

WAIT_S = 5.0
"""Seconds of one wait for rank 0; a signal is handled after at most this time."""


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks of a run. All ranks must make the same calls in the same order."""

    rank: int = 0
    size: int = 1
    """Number of ranks."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where the model computes, and where collectives expect their tensors."""
    launched: bool = False
    """Whether a launcher (``deepspeed``, ``torchrun``) started this process."""
    progress: Progress = field(default_factory=Progress, repr=False, compare=False)
    """How far this process has come, for the watchdog."""
    _calls: Iterator[int] = field(default_factory=count, repr=False, compare=False)
    """Numbers the calls of ``first_decides``."""

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes files and shows progress."""
        return self.rank == 0

    def total(self, value: float) -> float:
        """Sum over all ranks, in fp64."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        value = float(tensor.item())
        self.progress.step()
        return value

    def add_up(self, tensor: torch.Tensor) -> None:
        """Replaces the tensor, on ``device``, by its sum over all ranks. The host does not wait for the result."""
        if self.size > 1:
            dist.all_reduce(tensor)

    def every(self, flag: bool) -> bool:
        """Whether the flag is set on all ranks."""
        return self.total(float(flag)) == self.size

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on at least one rank."""
        return self.total(float(flag)) > 0

    def largest(self, value: int) -> int:
        """Maximum over all ranks."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return int(tensor.item())

    def same(self, digest: bytes) -> bool:
        """Whether all ranks pass the same bytes, of the same length. Every rank receives the same answer."""
        if self.size == 1:
            return True
        own = torch.tensor(list(digest), dtype=torch.uint8, device=self.device)
        found = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(found, own)
        return bool((torch.stack(found) == own).all().item())

    def gather(self, value: Value) -> list[Value]:
        """The values of all ranks, in order of rank; every rank receives the list."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        self.progress.step()
        return values

    def from_first(self, value: Value) -> Value:
        """Returns rank 0's value on every rank; the values passed by other ranks are ignored."""
        if self.size == 1:
            return value
        holder = [value]
        dist.broadcast_object_list(holder, src=0)
        self.progress.step()
        return holder[0]

    def first_decides(self, decide: Callable[[], Value]) -> Value:
        """Calls ``decide`` on rank 0 only, and returns its result on every rank, however long the call takes.

        If the call raises, every rank raises: a ``CoconutError`` as it is, any other exception as a ``CoconutError``
        on ranks other than 0.
        """
        value: Value | None = None
        error: CoconutError | None = None
        if self.is_first:
            try:
                value = decide()
            except CoconutError as caught:
                error = caught
            except Exception as caught:
                # The other ranks would wait forever: they raise its text, and rank 0 raises it with its traceback.
                self.await_first()
                self.from_first((None, CoconutError(f"rank 0: {type(caught).__name__}: {caught}")))
                raise
        self.await_first()
        value, error = self.from_first((value, error))
        if error is not None:
            raise error
        return value  # type: ignore[return-value]

    def await_first(self) -> None:
        """Waits, for any time, until rank 0 has made this call too; the n-th call waits for rank 0's n-th call.

        It uses the process group's store, not a collective: a collective fails after the group's timeout (10 minutes),
        but rank 0 may have to wait longer, for example for a lock or for a slow disk.
        """
        if self.size == 1:
            return
        key = f"coconut_ds/first/{next(self._calls)}"
        store = dist.distributed_c10d._get_default_store()
        if self.is_first:
            store.set(key, "")
            return
        while True:
            # In short waits, so that Python can run the handlers of signals in between.
            with suppress(dist.DistStoreError):
                store.wait([key], timedelta(seconds=WAIT_S))
                return

    def on_first(self, call: Callable[[], Value]) -> Value | None:
        """Calls ``call`` on rank 0 only. Returns its result there, None on other ranks; errors as ``first_decides``."""
        results: list[Value] = []
        self.first_decides(lambda: results.append(call()))
        return results[0] if results else None

    def wait(self) -> None:
        """Waits until all ranks have called it."""
        if self.size > 1:
            dist.barrier()


ALONE = Ranks()
"""A single rank on the CPU."""


def alone() -> Ranks:
    """A single rank, on the accelerator if there is one, otherwise on the CPU."""
    # current_accelerator() names the accelerator that torch was built for, whether or not this machine has one.
    built_for = torch.accelerator.current_accelerator()
    return Ranks(device=built_for if built_for and torch.accelerator.is_available() else torch.device("cpu"))
