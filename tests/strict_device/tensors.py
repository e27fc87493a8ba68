"""Tensors on the strict device: torch sees that device, and their values are in a tensor on the CPU."""

from typing import Any

import numpy
import torch
from torch import Tensor, nn

NAME = "gpu"
"""The type of the device. Not ``cuda``, which a build of torch for CPUs has no guard for."""


class DeviceTensor(Tensor):
    """A tensor on the strict device. What ``operations.Operations`` computes with it is computed with ``host``."""

    host: Tensor
    """The values, on the CPU. The views of a tensor share its memory."""
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: Tensor) -> "DeviceTensor":
        """The tensor with these values; the two share their memory."""
        device = torch.device(NAME, 0)
        made: DeviceTensor = Tensor._make_wrapper_subclass(
            cls, host.size(), host.stride(), host.storage_offset(), dtype=host.dtype, device=device
        )
        made.host = host
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func}: a tensor of the strict device is used outside of strict()")

    @property
    def data(self) -> Tensor:
        """The tensor without its history, as for all tensors. Assigning replaces shape, type and values."""
        return Tensor.data.__get__(self)

    @data.setter
    def data(self, value: "DeviceTensor") -> None:
        Tensor.data.__set__(self, value)
        self.host = value.host

    def __getitem__(self, index: Any) -> Any:
        return Tensor.__getitem__(self, _with_tensors(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        Tensor.__setitem__(self, _with_tensors(index), value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copied = memo[id(self)] = self.detach().clone().requires_grad_(self.requires_grad)
            if isinstance(self, nn.Parameter):
                copied._is_param = True
        made: Tensor = memo[id(self)]
        return made

    def __repr__(self, **options: Any) -> str:
        return f"DeviceTensor({self.dtype}, {tuple(self.shape)})"

    def tolist(self) -> Any:
        """One copy to the host, and its values."""
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """As on a GPU, only with ``force``."""
        if not force:
            raise TypeError(f"can't convert {self.device} device type tensor to numpy; use Tensor.cpu() first")
        return self.detach().cpu().numpy()

    def data_ptr(self) -> int:
        """Where the values begin in memory."""
        return self.host.data_ptr()


def is_there(place: torch.device | str | None) -> bool:
    """Whether a place is the strict device."""
    return place is not None and torch.device(place).type == NAME


def _with_tensors(index: Any) -> Any:
    """An index whose lists of numbers are tensors on the CPU; indexing then moves them, as it does for a GPU."""
    if isinstance(index, tuple):
        return tuple(_with_tensors(each) for each in index)
    if isinstance(index, list | numpy.ndarray):
        with torch.device("cpu"):
            return torch.tensor(index, dtype=None if len(index) else torch.long)
    return index
