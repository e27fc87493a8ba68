"""Counts or refuses host syncs: operations that make the host wait until the GPU has done all its work so far.

These are values read from a tensor (``.item()``, ``.tolist()``, ``float``, ``bool``, ``.cpu()``), the places of true
values in a tensor (``nonzero``, a mask as an index), and copies from the host to the device, unless they are made with
``non_blocking=True`` from pinned memory: torch waits for the device after any other copy. Other operations whose output
has a shape that depends on values (``unique``, ``masked_select``) are refused (``operations.py``). What an operation on
a GPU does inside, for example the checks of ``torch.linalg.solve``, is not known here.
"""

import math
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

PACKAGE = Path(__file__).resolve().parents[2] / "coconut_ds"
OWN = [
    Path(__file__).resolve().with_name(name) for name in ("operations.py", "registering.py", "syncs.py", "tensors.py")
]
"""Files that are not the cause of a sync."""


class HostSync(AssertionError):
    """A host sync where none is allowed."""


@dataclass
class Counted:
    """The host syncs within a context."""

    reads: int = 0
    """The host waited for values of a tensor on the device."""
    copies: int = 0
    """The host waited until it had copied a tensor to the device."""
    places: Counter[str] = field(default_factory=Counter)
    """How often each line of the package made a sync."""

    @property
    def total(self) -> int:
        """All syncs."""
        return self.reads + self.copies

    def __str__(self) -> str:
        lines = [f"{count} × {place}" for place, count in self.places.most_common()]
        return "\n".join([f"{self.reads} reads, {self.copies} copies", *lines])


class Syncs:
    """Where host syncs are reported. They are counted by all open contexts ``counted``."""

    value = 0.0
    """What is read in place of every number; a number that is not finite only in place of others than integers."""

    def __init__(self) -> None:
        self._counting: list[Counted] = []
        self._refused = 0

    @contextmanager
    def counted(self) -> Iterator[Counted]:
        """Counts the syncs within this context. A value that is read is 0, and two tensors are equal."""
        counted = Counted()
        self._counting.append(counted)
        try:
            yield counted
        finally:
            self._counting.remove(counted)

    @contextmanager
    def refused(self) -> Iterator[None]:
        """Within this context, a sync raises ``HostSync`` at the line that makes it."""
        self._refused += 1
        try:
            yield
        finally:
            self._refused -= 1

    @contextmanager
    def reading(self, value: float) -> Iterator[None]:
        """Within this context, every number that is read from the device is ``value`` instead of 0."""
        before, Syncs.value = Syncs.value, value
        try:
            yield
        finally:
            Syncs.value = before

    def report(self, kind: str, operation: Any) -> None:
        """Notes one sync. ``kind``: ``reads`` or ``copies``."""
        if not (self._refused or self._counting):
            return
        place = f"{_place()} ({kind}, {operation})"
        if self._refused:
            raise HostSync(f"the host waits for the device: {place}")
        for counted in self._counting:
            setattr(counted, kind, getattr(counted, kind) + 1)
            counted.places[place] += 1


def _place() -> str:
    """The innermost line of the package that is running, or of whatever called this module."""
    frame: Any = sys._getframe(2)
    outside = None
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(PACKAGE):
            return f"{file.relative_to(PACKAGE)}:{frame.f_lineno}"
        if outside is None and file not in OWN and "torch" not in file.parts:
            outside = f"{file.name}:{frame.f_lineno}"
        frame = frame.f_back
    return str(outside)


def number(dtype: torch.dtype, value: float) -> float | int | bool:
    """``value`` as it would be read from a tensor of this type."""
    if dtype.is_floating_point:
        return float(value)
    return bool(value) if dtype == torch.bool else int(value) if math.isfinite(value) else 0
