"""Copies small tables of numbers from Python to the model's device, without waiting for the device."""

from collections.abc import Sequence

import torch
from torch import Tensor


def upload(values: Sequence[object], device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    """A tensor of (nested) lists of numbers on ``device``.

    A device copies it from page-locked memory, so the host does not wait; the allocator keeps that memory until
    the copy is done.
    """
    return _host_tensor(values, device, dtype).to(device, non_blocking=True)


def fill(target: Tensor, values: Sequence[object]) -> None:
    """Like ``upload``, into a tensor that exists, of the shape of ``values``."""
    target.copy_(_host_tensor(values, target.device, target.dtype), non_blocking=True)


def _host_tensor(values: Sequence[object], device: torch.device, dtype: torch.dtype) -> Tensor:
    host = torch.tensor(values, dtype=dtype)
    return host if device.type == "cpu" else host.pin_memory()


def padded(lists: Sequence[Sequence[int]], width: int, value: int) -> list[list[int]]:
    """The lists, each continued with ``value`` to ``width`` entries."""
    return [[*each, *[value] * (width - len(each))] for each in lists]
