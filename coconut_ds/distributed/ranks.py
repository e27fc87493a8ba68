"""What ranks say to each other, over torch.distributed; with one process it says nothing."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from coconut_ds.errors import CoconutError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """This process among all of them."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where the backend wants its tensors."""
    launched: bool = False
    """Whether a launcher started this process."""

    @property
    def is_first(self) -> bool:
        """Whether this rank writes files and shows progress."""
        return self.rank == 0

    def total(self, value: float) -> float:
        """Sum over all ranks, in fp64."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return float(tensor.item())

    def every(self, flag: bool) -> bool:
        """Whether the flag is set on all ranks."""
        return self.total(float(flag)) == self.size

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on some rank."""
        return self.total(float(flag)) > 0

    def largest(self, value: int) -> int:
        """The largest of all ranks' numbers."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return int(tensor.item())

    def gather(self, value: Value) -> list[Value]:
        """The value of each rank, in order, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_first(self, value: Value) -> Value:
        """Rank 0's value on every rank."""
        if self.size == 1:
            return value
        holder = [value]
        dist.broadcast_object_list(holder, src=0)
        return holder[0]

    def first_decides(self, decide: Callable[[], Value]) -> Value:
        """What rank 0's call returns, on every rank; its error is every rank's error."""
        value: Value | None = None
        error: CoconutError | None = None
        if self.is_first:
            try:
                value = decide()
            except CoconutError as caught:
                error = caught
            except Exception as caught:
                # Others would wait for ever. They say what it was; here it keeps its traceback.
                self.from_first((None, CoconutError(f"rank 0: {type(caught).__name__}: {caught}")))
                raise
        value, error = self.from_first((value, error))
        if error is not None:
            raise error
        return value  # type: ignore[return-value]

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.size > 1:
            dist.barrier()


ALONE = Ranks()
"""One process on the CPU."""


def alone() -> Ranks:
    """One process on the accelerator where there is one, else on the CPU."""
    # The current accelerator is the one torch was built for, whether or not the machine has it.
    built_for = torch.accelerator.current_accelerator()
    return Ranks(device=built_for if built_for and torch.accelerator.is_available() else torch.device("cpu"))
