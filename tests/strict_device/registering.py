"""Registers the strict device with torch, and makes the context in which tensors on it are fake."""

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

from strict_device.building import library
from strict_device.syncs import Syncs, SyncWatch, number

NAME = "gpu"
"""The type of the device. Not ``cuda``, which a build of torch for CPUs has no guard for."""


@cache
def device() -> torch.device:
    """The strict device. The first call compiles its library if necessary and registers it, for the whole process.

    Raises:
        NoCompiler: see ``building.library``.
    """
    torch.ops.load_library(str(library()))
    torch.utils.rename_privateuse1_backend(NAME)
    module = types.ModuleType(f"torch.{NAME}")
    functions: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_amp_supported_dtype": lambda: [torch.bfloat16],
        "manual_seed_all": lambda seed: None,
        "_is_in_bad_fork": lambda: False,
    }
    vars(module).update(functions)
    torch._register_device_module(NAME, module)
    nn.Module._apply = _apply
    FakeTensor.tolist = _tolist
    FakeTensor.numpy = _numpy
    FakeTensor.data_ptr = _data_ptr
    return torch.device(NAME, 0)


@contextmanager
def strict() -> Iterator[Syncs]:
    """Within this context, all new tensors are fake, and host syncs are counted; yields what counts and refuses them.

    Models must be made within it. Tensors from outside, such as a batch made on the CPU, can be moved to the device.
    """
    device()
    syncs = Syncs()
    # In one thread: autograd would run the backward pass in one of its own, which neither coverage nor exceptions like.
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        SyncWatch(syncs),
        _Construction(),
        torch.autograd.set_multithreading_enabled(False),
    ):
        yield syncs


class _Construction(TorchFunctionMode):
    """Makes tensors from values on the CPU and then moves them, as torch itself does for a GPU.

    ``FakeTensorMode`` supports neither a device in ``torch.tensor`` nor a list as the index of a tensor there.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            return func(args[0], _with_tensors(args[1]), *args[2:])
        if func not in (torch.tensor, torch.as_tensor) or kwargs.get("device") is None:
            return func(*args, **kwargs)
        place = kwargs.pop("device")
        with torch.device("cpu"):
            made = func(*args, **kwargs)
        return made.to(place)


def _with_tensors(index: Any) -> Any:
    """An index whose lists of numbers are tensors on the CPU; indexing then moves them."""
    if isinstance(index, tuple):
        return tuple(_with_tensors(each) for each in index)
    if isinstance(index, list | numpy.ndarray):
        with torch.device("cpu"):
            return torch.tensor(index, dtype=None if len(index) else torch.long)
    return index


def _apply(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """``module._apply``, behind ``module.to``: torch's own cannot change fake parameters.

    It changes their type, but cannot move them to another device.
    """
    for child in module.children() if recurse else ():
        child._apply(change)
    for parameter in module._parameters.values():
        if parameter is not None:
            with torch.no_grad():
                parameter.data = change(parameter)
    for name, buffer in module._buffers.items():
        module._buffers[name] = None if buffer is None else change(buffer)
    return module


def _tolist(tensor: Tensor) -> Any:
    """``tensor.tolist()`` for a fake tensor: one copy to the host, and its values, which are unknown."""
    values = tensor.cpu()
    known = getattr(values, "constant", None)
    if known is not None:
        return known.tolist()
    return numpy.full(tuple(values.shape), number(values.dtype, Syncs.value)).tolist()


def _numpy(tensor: Tensor) -> Any:
    """``tensor.numpy()`` for a fake tensor."""
    if tensor.device.type != "cpu":
        raise TypeError(f"can't convert {tensor.device} device type tensor to numpy; use Tensor.cpu() first")
    return numpy.zeros(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def _data_ptr(tensor: Tensor) -> int:
    """``tensor.data_ptr()`` for a fake tensor: equal for two tensors that would begin at one place in memory."""
    return int(tensor.untyped_storage()._cdata) + tensor.storage_offset() * tensor.element_size()
