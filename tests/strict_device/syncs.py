"""Counts or refuses host syncs: operations that make the host wait until the GPU has done all its work so far.

These are values read from a tensor (``.item()``, ``.tolist()``, ``float``, ``bool``, ``.cpu()``), the places of true
values in a tensor (``nonzero``, a mask as an index), and copies from the host to the device, unless they are made with
``non_blocking=True`` from pinned memory: torch waits for the device after any other copy. Other operations whose output
has a shape that depends on values (``unique``, ``masked_select``) are refused by torch's ``FakeTensorMode``. What an
operation on a GPU does inside, for example the checks of ``torch.linalg.solve``, is not known here.
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
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

aten = torch.ops.aten
PACKAGE = Path(__file__).resolve().parents[2] / "coconut_ds"
OWN = [Path(__file__).resolve().with_name(name) for name in ("syncs.py", "registering.py")]
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


class SyncWatch(TorchDispatchMode):
    """Reports syncs, and answers where fake tensors have no values. Must be entered after the ``FakeTensorMode``."""

    def __init__(self, syncs: Syncs) -> None:
        super().__init__()
        self._syncs = syncs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (aten._local_scalar_dense.default, aten.equal.default):
            return self._value(func, args)
        if func is aten.is_pinned.default:
            return _is_pinned(args[0])
        if func is aten._pin_memory.default:
            return _pinned(args[0].clone())
        if func is aten._to_copy.default:
            self._copy(func, args[0], kwargs.get("device"), kwargs.get("non_blocking", False))
            is_known = not isinstance(args[0], FakeTensor) or args[0].constant is not None
            if is_known and _on_device(kwargs.get("device")):
                # Known values, which the fake mode would copy to a device that does not exist.
                dtype = kwargs.get("dtype") or args[0].dtype
                return torch.empty_strided(args[0].shape, args[0].stride(), dtype=dtype, device=kwargs["device"])
        elif func is aten.copy_.default:
            # Numbers are filled in, not copied.
            if args[1].dim() or _on_device(args[1].device):
                self._copy(func, args[1], args[0].device, (*args, False)[2])
        elif func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default):
            args = (args[0], self._indices(func, *args[:3]), *args[2:])
        elif func is aten.nonzero.default and _on_device(args[0].device):
            self._syncs.report("reads", func)
            return args[0].new_zeros(1, args[0].dim(), dtype=torch.long)
        result = func(*args, **kwargs)
        return _pinned(result) if kwargs.get("pin_memory") else result

    def _value(self, func: Any, tensors: tuple[Tensor, ...]) -> Any:
        if any(_on_device(tensor.device) for tensor in tensors):
            self._syncs.report("reads", func)
        elif not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            with _disable_current_modes():
                return func(*tensors)
        else:
            try:
                return func(*tensors)
            except DataDependentOutputException:
                pass
        if func is aten.equal.default:
            return True
        # A fake number on the CPU is a counter, such as the number of steps of an optimizer: never 0.
        return number(tensors[0].dtype, Syncs.value if _on_device(tensors[0].device) else 1)

    def _copy(self, func: Any, source: Tensor, target: Any, non_blocking: bool) -> None:
        if target is None or _on_device(target) == _on_device(source.device) or not source.numel():
            return
        if not _on_device(target):
            self._syncs.report("reads", func)
        elif not (non_blocking and _is_pinned(source)):
            self._syncs.report("copies", func)

    def _indices(self, func: Any, tensor: Tensor, indices: Any, value: Tensor | None = None) -> Any:
        """Reports what indexing does: it copies indices on the CPU to the device, and looks for the places of masks."""
        if not _on_device(tensor.device):
            return indices
        found = []
        for index in indices:
            if index is None:
                found.append(None)
                continue
            if not _on_device(index.device):
                self._syncs.report("copies", func)
            if index.dtype in (torch.bool, torch.uint8):
                self._syncs.report("reads", func)
                found += [index.new_zeros(1, dtype=torch.long) for _ in range(index.dim())]
            else:
                found.append(index)
        return found


def number(dtype: torch.dtype, value: float) -> float | int | bool:
    """``value`` as it would be read from a tensor of this type."""
    if dtype.is_floating_point:
        return float(value)
    return bool(value) if dtype == torch.bool else int(value) if math.isfinite(value) else 0


def _on_device(place: torch.device | str | None) -> bool:
    return place is not None and torch.device(place).type not in ("cpu", "meta")


def _is_pinned(tensor: Tensor) -> bool:
    if isinstance(tensor, FakeTensor):
        return getattr(tensor, "strict_pinned", False)
    with _disable_current_modes():
        return tensor.is_pinned()


def _pinned(tensor: Tensor) -> Tensor:
    tensor.strict_pinned = True  # type: ignore[attr-defined]
    return tensor
