"""Tensors as views of one buffer, which moves to a GPU in one copy.

For a GPU the buffer is in pinned memory, from which it is copied while the host does other work. Nothing may write to a
buffer after it is filled.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Part = TypeVar("Part", bound="DataclassInstance")

TYPES = {np.dtype(np.int64): torch.int64, np.dtype(np.float32): torch.float32, np.dtype(np.bool_): torch.bool}
"""torch's names of the types of the tensors."""


def viewed(part: Part, buffer: Tensor) -> Part:
    """``part`` with its tensors replaced by those at the same places of another buffer."""
    values: dict[str, Any] = {field.name: getattr(part, field.name) for field in fields(part)}
    for name, value in values.items():
        if isinstance(value, Tensor):
            start = value.storage_offset() * value.itemsize
            values[name] = buffer[start : start + value.nbytes].view(value.dtype).view(value.shape)
    return type(part)(**values)


def on_host(values: NDArray[Any], pinned: bool) -> Tensor:
    """The tensor of an array, in the memory of the host; ``pinned``: whether it is pinned."""
    made = torch.from_numpy(values)
    return made.pin_memory() if pinned else made


def packed(
    arrays: Mapping[np.dtype[Any], Mapping[str, NDArray[Any]]], pinned: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """Copies arrays into one buffer. Returns it, and for each array the tensor that is its copy there.

    Args:
        arrays: for each type, the largest first so that all are aligned, the arrays to store as that type.
        pinned: whether the buffer is in pinned memory.
    """
    sizes_in_bytes = (dtype.itemsize * each.size for dtype, group in arrays.items() for each in group.values())
    # torch cannot view an empty tensor as another type.
    size = max(8, sum(sizes_in_bytes))
    if pinned:
        buffer = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        memory = buffer.numpy()
    else:
        memory = np.empty(size, np.uint8)
        buffer = torch.from_numpy(memory)
    tensors: dict[str, Tensor] = {}
    start = 0
    for dtype, group in arrays.items():
        sizes = [each.size for each in group.values()]
        end = start + dtype.itemsize * sum(sizes)
        np.concatenate([each.ravel() for each in group.values()], out=memory[start:end].view(dtype))
        parts = buffer[start:end].view(TYPES[dtype]).split(sizes)
        tensors |= {name: part.view(each.shape) for part, (name, each) in zip(parts, group.items(), strict=True)}
        start = end
    return buffer, tensors
